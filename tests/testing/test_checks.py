"""What authors of plug-ins check theirs with: it passes ours, and finds the usual faults."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.protocols import Proposer, TreePolicy
from specdec.core.randomness import RandomStream
from specdec.core.values import Context, Draw, Proposal
from specdec.testing import (
    check_heads,
    check_loss,
    check_proposer,
    check_tree,
    prove_lossless,
    random_table,
)
from specdec.training.chained import ChainedTraining
from specdec.training.loss.expected_accepted import ExpectedAccepted
from specdec.training.loss.kl import KL
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Loss
from specdec.tree.fixed import Candidates, FixedTree
from tests.support.every_loss import LOSSES

GAMMA = 3
TREES: list[Callable[[], TreePolicy]] = [
    lambda: sd.Chain(GAMMA),
    lambda: sd.Sampled([2, 2], "iid"),
    lambda: sd.Sampled([2, 2], "without_replacement"),
    lambda: sd.Sampled([2, 2], "top_plus_one"),
    lambda: sd.Filtered(GAMMA),
    lambda: sd.Sparse([[0], [1], [0, 0]]),
    lambda: sd.Dynamic(6, 3, 3),
]


@pytest.mark.parametrize("make", TREES)
def test_our_trees_pass(make: Callable[[], TreePolicy]) -> None:
    check_tree(make())


@pytest.mark.parametrize("make", [lambda: sd.NGram(GAMMA), sd.NoProposer])
def test_our_proposers_pass(make: Callable[[], Proposer]) -> None:
    check_proposer(make)


@pytest.mark.parametrize("loss", [*LOSSES, ExpectedAccepted()])
def test_our_losses_pass(loss: Loss) -> None:
    check_loss(loss)


@pytest.mark.parametrize(
    ("training", "options"),
    [(MedusaTraining, {}), (ChainedTraining, {"link": "both", "prefix_attention": True})],
)
def test_our_heads_pass(training: type[Any], options: dict[str, Any]) -> None:
    check_heads(training, **options)


def test_a_lossy_rule_is_refused() -> None:
    prove_lossless(sd.Rejection(), Draw.SINGLE)
    with pytest.raises(sd.UserError, match="the text's distribution is off"):
        prove_lossless(sd.TopK(2), Draw.SINGLE)


class Draft(sd.DraftModel):
    """A proposer that is right, to be spoilt."""

    def __init__(self) -> None:
        super().__init__(random_table(2), sd.Chain(GAMMA))


class Forgetful(sd.NGram):
    """Looks words up in what another request has said."""

    def __init__(self) -> None:
        super().__init__(GAMMA)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        heard = contexts[0].token_ids
        mixed = [replace(each, token_ids=[*heard, each.token_ids[-1]]) for each in contexts]
        return super().propose(mixed)


class OwnNoise(Draft):
    """Draws from torch's own generator."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        noise = int(torch.randint(1 << 30, ()))
        streams = [RandomStream(noise, each.request_id, 0, "draft") for each in contexts]
        moved = zip(contexts, streams, strict=True)
        return super().propose([replace(each, draft_stream=stream) for each, stream in moved])


class Deeper(Draft):
    """Grows deeper trees than it says."""

    @property
    def max_depth(self) -> int:
        return GAMMA - 1


class Argmax(Draft):
    """Passes likeliest tokens off as drawn ones."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [self._likeliest(each) for each in super().propose(contexts)]

    def _likeliest(self, proposal: Proposal) -> Proposal:
        rows = proposal.draft_probs
        if rows is None:  # where there is no room for candidates
            return proposal
        ids = [int(row.argmax()) for row in rows[: proposal.tree.num_draft_tokens]]
        return replace(proposal, tree=type(proposal.tree).chain(proposal.tree.token_ids[0], ids))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Forgetful, "has other proposals"),
        (OwnNoise, "has other proposals"),
        (Deeper, "a tree of depth 3, and max_depth=2"),
        (Argmax, "too many likely tokens"),
    ],
)
def test_faults_of_proposers_are_found(make: Callable[[], Proposer], said: str) -> None:
    with pytest.raises(sd.UserError, match=said) as caught:
        check_proposer(make, max_new_tokens=60)
    assert "\n" not in str(caught.value)


class Fan(FixedTree):
    """The likeliest tokens as children of the root."""

    draw = Draw.DETERMINISTIC

    def __init__(self) -> None:
        super().__init__([(0,), (1,), (0, 0), (1, 0)])

    def candidates(
        self, draft_probs: Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        return Candidates(draft_probs.topk(width, dim=-1).indices)


class Narrow(Fan):
    """Announces fewer nodes with children than it has."""

    @property
    def parents(self) -> list[int]:
        return [1, 1]


class Shallow(Fan):
    """Announces fewer levels than it has."""

    @property
    def parents(self) -> list[int]:
        return [1]


@pytest.mark.parametrize(
    ("tree", "said"),
    [(Narrow(), "2 nodes with children at depth 1"), (Shallow(), "1 levels in `parents`")],
)
def test_faults_of_trees_are_found(tree: TreePolicy, said: str) -> None:
    check_tree(Fan())
    with pytest.raises(sd.UserError, match=said):
        check_tree(tree)


class Mean(KL):
    """Averages over the batch."""

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        return super().__call__(logits, target_ids, log_p).mean().expand(len(logits))


class Total(KL):
    """Adds the batch up."""

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        return super().__call__(logits, target_ids, log_p).sum()


class Raw(KL):
    """Forgets to normalise."""

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        return -logits.gather(-1, target_ids[:, None])[:, 0]


class Deaf(KL):
    """Follows no gradient."""

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        return super().__call__(logits.detach(), target_ids, log_p)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Mean(), "depends on the tokens beside it"),
        (Total(), "expected 6 finite scores"),
        (Raw(), "a constant added to all logits"),
        (Deaf(), "no gradient reaches the logits"),
    ],
)
def test_faults_of_losses_are_found(loss: Loss, said: str) -> None:
    with pytest.raises(sd.UserError, match=said):
        check_loss(loss)
