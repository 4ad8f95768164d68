"""Filtered chains: what is withheld, and what the rule is told about it."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.core.values import Draw, Proposal
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.proposer.draft_model import DraftModel
from specdec.tree.filtered import Filtered
from tests.support.asking import context, proposals_of
from tests.support.toy import Conditional, EnumeratedStream, Tokens, full_context, gridded, table_lm

CELLS = 8
V = 3
PROMPT = (1,)
GRID = gridded(4, CELLS, V)
EXACT = 1e-12


class Drafted(NamedTuple):
    """What a rule sees of a chain."""

    token_ids: Tokens
    withheld: bool


def passes(distribution: Conditional, text: Tokens, min_prob: float, top_k: int) -> list[bool]:
    """The definition: likely enough, and among the likeliest, ties included."""
    row = distribution(text).tolist()
    threshold = sorted(row, reverse=True)[top_k - 1] if top_k else 0.0
    return [q >= min_prob and q >= threshold for q in row]


def expected_distribution(
    distribution: Conditional, gamma: int, min_prob: float, top_k: int
) -> dict[Drafted, float]:
    """Draw until a token does not pass."""
    found: dict[Drafted, float] = {}
    growing: dict[Tokens, float] = {(): 1.0}
    for _ in range(gamma):
        longer: dict[Tokens, float] = {}
        for text, mass in growing.items():
            good = passes(distribution, (*PROMPT, *text), min_prob, top_k)
            for token, q in enumerate(distribution((*PROMPT, *text)).tolist()):
                if good[token]:
                    longer[(*text, token)] = mass * q
                else:
                    key = Drafted(text, True)
                    found[key] = found.get(key, 0.0) + mass * q
        growing = longer
    found |= {Drafted(text, False): mass for text, mass in growing.items()}
    return {drafted: mass for drafted, mass in found.items() if mass > 0}


def check_rows(proposal: Proposal, distribution: Conditional, min_prob: float, top_k: int) -> None:
    """Each recorded row is q where it passes and 0 elsewhere, the withheld token's row included."""
    tokens = proposal.tree.token_ids[1:]
    rows = proposal.draft_probs
    assert rows is not None
    assert len(rows) >= len(tokens) + proposal.withheld
    for number, row in enumerate(rows[: len(tokens) + proposal.withheld]):
        text = (*PROMPT, *tokens[:number])
        good = torch.tensor(passes(distribution, text, min_prob, top_k))
        torch.testing.assert_close(row, distribution(text) * good, rtol=0, atol=EXACT)


FILTERS = [(0.25, 0), (0.5, 0), (0.0, 1), (0.3, 2), (0.0, 0), (1.0, 0)]


@pytest.mark.parametrize(("min_prob", "top_k"), FILTERS)
def test_a_token_is_withheld_iff_it_fails_the_filter(min_prob: float, top_k: int) -> None:
    """The exact joint distribution of chain and flag; and the chain ends where it is set."""
    gamma = 2
    tree = Filtered(gamma, min_prob, top_k)
    assert tree.draw is Draw.FILTERED

    def play(stream: BranchingStream) -> Drafted:
        noise: Any = EnumeratedStream(stream, CELLS)
        one = replace(context(PROMPT), draft_stream=noise)
        (proposal,) = proposals_of(DraftModel(table_lm(GRID, V), tree), one, vocab_size=V)
        check_rows(proposal, GRID, min_prob, top_k)
        return Drafted(proposal.tree.token_ids[1:], proposal.withheld)

    distribution, expected = outcomes(play), expected_distribution(GRID, gamma, min_prob, top_k)
    assert distribution.keys() == expected.keys()
    assert all(abs(distribution[key] - mass) < EXACT for key, mass in expected.items())
    flags = {drafted.withheld for drafted in distribution}
    assert (True in flags) == ((min_prob, top_k) != (0.0, 0)), "the case shows nothing"


def test_at_temperature_zero_nothing_is_withheld() -> None:
    """The only token has probability 1, and there is one likeliest."""
    distribution = full_context(3, 0.7, 5)
    strict: list[dict[str, Any]] = [{"min_prob": 1.0}, {"min_prob": 0.0, "top_k": 1}]
    for options in strict:
        proposer = DraftModel(table_lm(distribution, 5), Filtered(4, **options))
        (proposal,) = proposals_of(proposer, context(PROMPT, sampling=Sampling(0)), vocab_size=5)
        assert (proposal.tree.num_draft_tokens, proposal.withheld) == (4, False)


def test_requests_end_where_their_own_tokens_do() -> None:
    """In one batch: each like alone, and calls are counted as if it were."""
    distribution = full_context(9, 0.5, 6)
    tree = Filtered(3, min_prob=0.15)
    batch = [context([first], row=row, key=7) for row, first in enumerate(range(6))]
    together = proposals_of(DraftModel(table_lm(distribution, 6), tree), *batch, vocab_size=6)
    for one, proposal in zip(batch, together, strict=True):
        alone_context = context(one.token_ids, row=one.row, key=7)
        (alone,) = proposals_of(
            DraftModel(table_lm(distribution, 6), tree), alone_context, vocab_size=6
        )
        assert (alone.tree, alone.withheld) == (proposal.tree, proposal.withheld)
        drawn = proposal.tree.num_draft_tokens + proposal.withheld
        assert proposal.num_draft_calls == alone.num_draft_calls == drawn
    assert len({proposal.tree.num_draft_tokens for proposal in together}) > 2
    assert {proposal.withheld for proposal in together} == {True, False}


def test_filters_and_confidence_end_a_chain_for_their_own_reasons() -> None:
    """Stopping before a draw withholds nothing."""
    distribution = full_context(9, 0.5, 6)
    tree = Filtered(4, min_prob=0.0, min_confidence=0.4)
    lengths: set[int] = set()
    for first in range(6):
        (proposal,) = proposals_of(
            DraftModel(table_lm(distribution, 6), tree), context([first]), vocab_size=6
        )
        assert not proposal.withheld
        lengths.add(proposal.tree.num_draft_tokens)
        text = (first, *proposal.tree.token_ids[1:])
        sure = [float(distribution(text[: 1 + n]).max()) >= 0.4 for n in range(len(text))]
        assert all(sure[: len(text) - 1])
        assert len(text) == 5 or not sure[-1]
    assert len(lengths) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, r"^gamma=0"),
        ({"min_prob": 1.5}, r"^min_prob=1\.5"),
        ({"top_k": -1}, r"^top_k=-1"),
        ({"min_confidence": -0.1}, r"^min_confidence=-0\.1"),
    ],
    ids=str,
)
def test_bad_filters_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Filtered(**{"gamma": 3, **options})
