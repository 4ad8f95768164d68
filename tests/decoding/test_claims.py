"""A proposer from outside is held to what it says of its proposals."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Proposal, Verdict
from specdec.decoding.claims import Claims, claims_of
from specdec.decoding.stopping import Stopping
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from tests.support.arms import decoder, requests

DISTRIBUTION = torch.tensor([0.4, 0.3, 0.2, 0.1])
PEAKED = torch.tensor([0.997, 0.001, 0.001, 0.001])


class Own:
    """A proposer of somebody's own; what it proposes is made below."""

    layers: Sequence[int | str] = ()
    max_depth = 2

    def __init__(self, draw: Draw = Draw.SINGLE):
        self.draw = draw

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None: ...

    def reset(self, contexts: Sequence[Context]) -> None: ...

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return []

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None: ...


def context() -> Context:
    stream = RandomStream(0, "claims")
    return Context(0, "a", [3], 1, Sampling(1.0), 8, stream, stream)


def children(tokens: Sequence[int], rows: Tensor | None, draw: Draw, root: int = 3) -> Proposal:
    """Make a proposal whose candidates all hang from the root."""
    tree = CandidateTree((root, *tokens), (-1, *(0 for _ in tokens)))
    return Proposal(tree, draw, rows)


def held(proposals: Sequence[Proposal], draw: Draw = Draw.SINGLE) -> None:
    """Hold a run of proposals, one a step, against what the proposer says."""
    claims = Claims(Own(draw))
    for proposal in proposals:
        claims.check([context()], [proposal])


def draws(distribution: Tensor, number: int, siblings: int = 1, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(distribution, number * siblings, True, generator=generator).view(
        number, siblings
    ).tolist()  # fmt: skip


@pytest.mark.parametrize("distribution", [DISTRIBUTION, PEAKED, torch.tensor([1.0, 0.0, 0.0, 0.0])])
@pytest.mark.parametrize(("draw", "siblings"), [(Draw.SINGLE, 1), (Draw.IID, 2)])
def test_honest_draws_are_believed(distribution: Tensor, draw: Draw, siblings: int) -> None:
    for seed in range(5):
        found = draws(distribution, 2000, siblings, seed)
        held([children(tokens, distribution[None], draw) for tokens in found], draw)


def test_an_argmax_passed_off_as_a_draw_is_found() -> None:
    with pytest.raises(UserError, match=r"Own: .*not drawn from its draft_probs: too many likely"):
        held([children([0], DISTRIBUTION[None], Draw.SINGLE)] * 2000)


def test_siblings_without_their_repetitions_are_found() -> None:
    pairs = [list(dict.fromkeys(pair)) for pair in draws(DISTRIBUTION, 2000, 2)]
    with pytest.raises(UserError, match="too few equal siblings"):
        held([children(pair, DISTRIBUTION[None], Draw.IID) for pair in pairs], Draw.IID)


def test_a_distribution_of_another_temperature_is_found() -> None:
    colder = DISTRIBUTION**3 / (DISTRIBUTION**3).sum()
    with pytest.raises(UserError, match="too many likely tokens"):
        held([children(tokens, DISTRIBUTION[None], Draw.SINGLE) for tokens in draws(colder, 3000)])


@pytest.mark.parametrize(
    ("proposal", "draw", "reason"),
    [
        (children([0], None, Draw.DETERMINISTIC), Draw.SINGLE, "deterministic, and it says single"),
        (
            children([1, 1], DISTRIBUTION[None], Draw.WITHOUT_REPLACEMENT),
            Draw.WITHOUT_REPLACEMENT,
            "two are equal",
        ),
        (
            children([0], 2 * DISTRIBUTION[None], Draw.SINGLE),
            Draw.SINGLE,
            "no distribution: they sum to 2",
        ),
        (
            children([0], torch.full((1, 4), float("nan")), Draw.SINGLE),
            Draw.SINGLE,
            "no distribution",
        ),
        (children([1], torch.eye(4)[:1], Draw.SINGLE), Draw.SINGLE, "draft_probs exclude"),
        (
            children([0], DISTRIBUTION[None], Draw.SINGLE, root=2),
            Draw.SINGLE,
            "not the last committed",
        ),
        (children([0], torch.zeros(0, 4), Draw.SINGLE), Draw.SINGLE, "no draft_probs for the chil"),
    ],
)
def test_what_is_not_as_declared_is_refused(proposal: Proposal, draw: Draw, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        held([proposal], draw)


def test_every_request_gets_a_proposal() -> None:
    with pytest.raises(UserError, match="0 proposals for 1 requests"):
        Claims(Own()).check([context()], [])


def test_ours_are_not_checked() -> None:
    assert claims_of(NoProposer()) is None
    assert claims_of(Own()) is not None


class Misnamed(NGram):
    """Copies of text, passed off as draws."""

    draw = Draw.SINGLE


def test_what_may_be_lossy_decodes_and_is_not_called_lossless() -> None:
    batch = requests(4, [1, 2, 1, 2])
    with pytest.raises(UserError, match="Misnamed: candidates that are deterministic"):
        decoder(Misnamed(gamma=2), sampling=Sampling(1.0), stopping=Stopping(6)).decode(batch)
    allowed = decoder(
        Misnamed(gamma=2), sampling=Sampling(1.0), stopping=Stopping(6), allow_lossy=True
    )
    assert allowed.lossless
    allowed.decode(batch)
    assert not allowed.lossless
