"""A batch is decided on as its trees are one by one, and the device is waited for once."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.core.randomness import RandomStream
from specdec.core.shown import Shown
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.core.verified import decides_together, verified
from specdec.proof.drafting import DRAFTERS, ROOT_TOKEN, Parents, chain
from specdec.verification.batched import Batched
from specdec.verification.block import Block
from specdec.verification.gbv import GreedyMultiPath
from specdec.verification.kseq import KSeq
from specdec.verification.kseq_block import KSeqBlock
from specdec.verification.lenient import Lenient
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.top_k import TopK
from specdec.verification.top_plus_one import TopPlusOne
from specdec.verification.traversal import Traversal
from specdec.verification.typical import Typical
from tests.support.rule_cases import (
    BINARY,
    CROSSED,
    DEEP,
    EMPTY,
    RANDOM,
    THREE,
    THREE_PATHS,
    TWO,
    TWO_LONGER,
    UNEVEN,
)
from tests.support.waiting import on_device, waits_counted

CHAINS = (chain(3), EMPTY, chain(1), chain(4))
TREES = (UNEVEN, EMPTY, BINARY, chain(1), CROSSED, DEEP, THREE)
PATHS = (TWO_LONGER, EMPTY, THREE, chain(1), THREE_PATHS, chain(4))
LEVEL = (TWO, EMPTY, TWO, THREE)
RULES: Sequence[Batched] = (
    *(Rejection(), Match(), KSeq(), Block(), Traversal(), TopPlusOne()),
    *(KSeqBlock(), GreedyMultiPath()),
    *(Lenient(), Typical(), TopK(2)),
)
SHAPES = {
    Draw.DETERMINISTIC: (CHAINS, TREES),
    Draw.SINGLE: (CHAINS,),
    Draw.FILTERED: (CHAINS,),
    Draw.IID: (TREES,),
    Draw.PATHS: (PATHS,),
    Draw.WITHOUT_REPLACEMENT: (TREES,),
    Draw.TOP_PLUS_ONE: (LEVEL,),
}
BATCHES = [
    pytest.param(rule, draw, parents, id=f"{type(rule).__name__}-{draw.value}-{len(parents)}")
    for rule in RULES
    for draw, batches in SHAPES.items()
    if draw in rule.defined_for
    for parents in batches
]


def _drafted(draw: Draw, parents: Parents, seed: int) -> tuple[Proposal, Tensor]:
    """Draft one tree, and p after each of its nodes."""
    pair = RANDOM[seed % len(RANDOM)]
    proposal = DRAFTERS[draw](parents, pair.q, RandomStream("draft", seed))
    tree = proposal.tree
    texts = [
        tuple(tree.token_ids[each] for each in tree.path_to(node))
        for node in range(len(tree.parents))
    ]
    return proposal, torch.stack([pair.p(text) for text in texts])


def _batch(draw: Draw, parents: Sequence[Parents], seed: int) -> tuple[list[Proposal], Tensor]:
    found = [_drafted(draw, each, seed + number) for number, each in enumerate(parents)]
    height = max(len(p) for _, p in found)
    # What stands behind a tree's nodes is not to be looked at.
    probs = [pad(p, (0, 0, 0, height - len(p)), value=torch.nan) for _, p in found]
    return [proposal for proposal, _ in found], torch.stack(probs)


def _streams(number: int, seed: int) -> list[RandomStream]:
    return [RandomStream("verify", seed, row) for row in range(number)]


def _alone(rule: Batched, proposals: Sequence[Proposal], probs: Tensor, seed: int) -> list[Verdict]:
    rows = zip(proposals, probs, _streams(len(proposals), seed), strict=True)
    return [rule.verify(each, p[: len(each.tree.parents)], stream) for each, p, stream in rows]


def _require_same(found: Sequence[Verdict], expected: Sequence[Verdict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.path, one.next_token, one.outcome) == (
            other.path,
            other.next_token,
            other.outcome,
        )
        assert one.expected_accepted == pytest.approx(other.expected_accepted)
        assert one.overlap == pytest.approx(other.overlap)
        assert one.bound == pytest.approx(other.bound)
        assert len(one.divergence) == len(other.divergence)
        flat = [[number for pair in each.divergence for number in pair] for each in (one, other)]
        assert flat[0] == pytest.approx(flat[1])


@pytest.mark.parametrize(("rule", "draw", "parents"), BATCHES)
def test_a_batch_is_decided_on_as_its_trees_are_one_by_one(
    rule: Batched, draw: Draw, parents: Sequence[Parents]
) -> None:
    """The same paths and tokens from the same streams, and the same reports."""
    for seed in range(20):
        proposals, probs = _batch(draw, parents, seed)
        shown = Shown(proposals, probs, _streams(len(proposals), seed))
        found = rule.verify_all(shown)
        _require_same(found, _alone(rule, proposals, probs, seed))
        # Rules that may stray say how far they did at each node, those without candidates, too.
        lossy = not rule.lossless_for
        assert all(len(each.divergence) == lossy * (len(each.path) + 1) for each in found)


@pytest.mark.parametrize(("rule", "draw", "parents"), BATCHES)
def test_tokens_that_are_drawn_ahead_are_those_that_would_be_drawn(
    rule: Batched, draw: Draw, parents: Sequence[Parents], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the host waits once, whatever is accepted, however long chains are, or many requests."""
    for seed in range(20):
        proposals, probs = _batch(draw, parents, seed)
        shown = Shown(proposals, probs, _streams(len(proposals), seed))
        with on_device(monkeypatch) as counts:
            found = rule.verify_all(shown)
        assert counts.total() == 1, dict(counts)
        _require_same(found, _alone(rule, proposals, probs, seed))


def test_ways_to_draw_that_are_mixed_are_kept_apart() -> None:
    """A proposer that declares no draw may copy text in one row and draw in the next."""
    drafted = [_drafted(draw, chain(2), 3) for draw in (Draw.SINGLE, Draw.DETERMINISTIC) * 2]
    proposals, probs = [each for each, _ in drafted], torch.stack([p for _, p in drafted])
    found = verified(Rejection(), Shown(proposals, probs, _streams(4, 0)))
    _require_same(found, _alone(Rejection(), proposals, probs, 0))


class _Refusing(Rejection):
    """Overrides what decides on one tree."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: object) -> Verdict:
        none = Proposal(CandidateTree.chain(ROOT_TOKEN, ()))
        return super().verify(none, verifier_probs[:1], RandomStream("own"))


def test_a_rule_that_overrides_verify_is_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it inherits for batches is not what it does."""
    proposals, probs = _batch(Draw.SINGLE, CHAINS, 0)
    found = verified(_Refusing(), Shown(proposals, probs, _streams(len(proposals), 0)))
    assert [each.path for each in found] == [()] * len(proposals)
    assert not decides_together(_Refusing())
    assert decides_together(type("Named", (Rejection,), {})())
    own = Rejection()
    monkeypatch.setattr(own, "verify", _Refusing().verify)
    assert not decides_together(own)


def test_waiting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these waits once."""
    row = torch.tensor([0.5, 0.5])
    with waits_counted(monkeypatch) as counts:
        for wait in (float, bool, Tensor.item, Tensor.tolist, Tensor.nonzero, Tensor.cpu):
            wait(row[0])
    assert counts.total() == 6


def test_numbers_that_were_peeked_at_still_come() -> None:
    """Whether they are decided with, or drawn with."""
    expected = RandomStream("key").peek(5)
    stream = RandomStream("key")
    assert stream.peek(2) == expected[:2]
    assert stream.uniform() == expected[0]
    assert stream.peek(3) == expected[1:4]
    assert [stream.uniform() for _ in range(4)] == expected[1:]
