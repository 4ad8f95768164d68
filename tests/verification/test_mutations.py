"""Known bugs, planted in the product one at a time: each must be found by the suite's own checks.

Most of them were shipped by some project (verification_theory.md, 1.3 to 1.7 and 5.4). `tv` is the
total variation between the text's distribution and p's that the planted bug causes for the pair of
distributions of its check, as enumerated; None where the bug biases no text, but a number that is
reported.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.outcome import Outcome
from specdec.core.protocols import VerificationRule
from specdec.core.shown import Shown
from specdec.core.values import Draw, Proposal, Verdict
from specdec.proof.drafting import chain
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.lenient import Lenient
from specdec.verification.odds import Odds
from tests.support.harness import bias, names
from tests.support.mutating import Plant, replaced, resolved, rewritten
from tests.support.rule_cases import (
    BELOW_SECOND,
    CROSSED,
    EXACT,
    FORKED,
    RANDOM,
    SPARSE,
    THREE,
    TWO,
    TWO_PATHS,
    BlockRule,
    Case,
    GreedyMultiPath,
    KSeq,
    KSeqBlock,
    Match,
    Pair,
    Rejection,
    TopPlusOne,
    Traversal,
    random_pair,
)
from tests.support.rule_checks import (
    ConstantStream,
    by_blocks,
    check_accepted_texts,
    check_divergence,
    check_expected_accepted,
    check_overlap_and_bound,
    check_pruned_distribution,
    check_text_distribution,
    check_zero_is_never_accepted,
)
from tests.support.toy import memoryless

DETECTED = 1e-3
PAIR = Pair("by-hand", memoryless(0.5, 0.3, 0.2), memoryless(0.15, 0.2, 0.65))
MIXED = RANDOM[4]  # full-context tables: rows of other nodes are other rows
WIDE = random_pair(43, 0.4, 0.0, vocab_size=4)  # where residuals have more than one token

Check = Callable[[], None]


@dataclass(frozen=True)
class Mutation:
    """A bug, and the check that must find it."""

    name: str
    plant: Plant
    check: Check
    tv: float | None = None
    case: Case | None = None
    pair: Pair = PAIR

    def __str__(self) -> str:
        return self.name


def of_text(name: str, tv: float, plant: Plant, case: Case, pair: Pair = PAIR) -> Mutation:
    """A bug that gives the text another distribution."""
    return Mutation(name, plant, lambda: check_text_distribution(case, pair), tv, case, pair)


def of_report(name: str, plant: Plant, check: Check) -> Mutation:
    """A bug that leaves the text as it is."""
    return Mutation(name, plant, check)


# --- the bugs that need more than a word to be changed ------------------------------------------

RULES = "specdec.verification"


def _original(name: str) -> Any:
    """Return a function of the product as it is before anything is planted."""
    return resolved(f"{RULES}.{name}")


_residual = _original("rejection.residual")
_holds = _original("block._holds")
_follow = _original("match.follow")
_drawn = _original("candidate_nodes.CandidateNodes.drawn")
_verify = _original("rejection.Rejection.verify_all")
_recursive = _original("rejection.recursive_rejection")


def _correction_from_p(p: Tensor, q: Tensor, fallback: Tensor) -> Tensor:
    return fallback


def _absolute_residual(p: Tensor, q: Tensor, fallback: Tensor) -> Tensor:
    return (p - q).abs() / (p - q).abs().sum(dim=-1, keepdim=True)


def _residual_as_it_is(p: Tensor, q: Tensor, fallback: Tensor) -> Tensor:
    return (p - q).clamp(min=0)


def _token_level_residual(p: Tensor, q: Tensor, fallback: Tensor) -> Tensor:
    return _residual(fallback, q, fallback)  # the fallback is p itself, not c p


def _q_as_it_was(nodes: CandidateNodes, draw: Draw, number: int) -> Tensor:
    return nodes.q


def _removed_without_renormalising(nodes: CandidateNodes, draw: Draw, number: int) -> Tensor:
    return nodes.q.scatter(1, nodes.token_ids[:, :number], 0.0)


def _duplicates_not_skipped(self: CandidateNodes, number: int) -> Tensor:
    earlier, this = self.token_ids[:, :number], self.token_ids[:, number : number + 1]
    there = torch.tensor([[count > number] for count in self.counts])
    return there & ~(earlier == this).any(dim=1, keepdim=True)


def _sorted_by(likelihood: Callable[[Proposal, Tensor], Tensor]) -> object:
    """Ask two siblings not in the order in which they were drawn, but the likelier one first."""

    def verify_all(self: Rejection, shown: Shown) -> list[Verdict]:
        (proposal,), p = shown.proposals, shown.probs
        tree, row = proposal.tree, likelihood(proposal, p[0])
        first, second = tree.token_ids[1:]
        if row[first] >= row[second]:
            return _verify(self, shown)
        swapped = replace(tree, token_ids=(tree.token_ids[0], second, first))
        other = replace(proposal, tree=swapped)
        (verdict,) = _verify(self, Shown([other], p[:, [0, 2, 1]], shown.streams))
        return [replace(verdict, path=tuple(3 - node for node in verdict.path))]

    return verify_all


def _root_row_of_q(proposal: Proposal, p: Tensor) -> Tensor:
    assert proposal.draft_probs is not None
    return proposal.draft_probs[0]


def _prefix_break(c: list[float], s: list[float], i: int, num_nodes: int) -> float:
    """Accept i tokens with prod_{j <= i} h_j (1 - h_{i+1}), as if the first refusal ended all."""
    reached = [1.0]
    for j in range(1, len(c)):
        reached.append(reached[-1] * _holds(c, s, j, num_nodes))
    if i == len(c) - 1:
        return reached[i]
    return (reached[i] - reached[i + 1]) / (1 - reached[i + 1])


def _product_of_uniforms(c: list[float], s: list[float], i: int, num_nodes: int) -> float:
    """Ask of two tokens whether c_i is at least u_1 ... u_i, the last i for which it is counting.

    So a public port had it, and drew what follows from the residual of one token.
    """
    assert len(c) == 3, "in closed form for chains of two"
    both = c[2] * (1 - math.log(c[2])) if c[2] > 0 else 0.0
    if i == 2:
        return both
    first = c[1] - c[2] - c[2] * math.log(c[1] / c[2]) if 0 < c[2] < c[1] else max(0.0, c[1] - c[2])
    return first / (1 - both) if both < 1 else 1.0


def _both(*plants: Plant) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        for each in plants:
            each(monkeypatch)

    return plant


def _match_then_redraw(shown: Shown) -> list[Verdict]:
    (verdict,) = _follow(shown)
    if verdict.outcome is Outcome.BONUS:
        return [verdict]
    p = shown.probs[0, verdict.path[-1] if verdict.path else 0]
    return [replace(verdict, next_token=shown.streams[0].choose(p))]


def _first_token_unverified(nodes: CandidateNodes, draw: Draw) -> Odds:
    odds = _recursive(nodes, draw)
    odds.accept[0, 0] = 1.0
    return odds


def _case(rule: VerificationRule, draw: Draw, parents: tuple[int, ...] = chain(1)) -> Case:
    return Case(rule, draw, parents)


TOKENS = _case(Rejection(), Draw.SINGLE)
LONGER = _case(Rejection(), Draw.SINGLE, chain(2))
IID = _case(Rejection(), Draw.IID, TWO)
WITHOUT = _case(Rejection(), Draw.WITHOUT_REPLACEMENT, TWO)
BLOCK = _case(BlockRule(), Draw.SINGLE, chain(2))
DEEP_CHAIN = _case(Traversal(), Draw.SINGLE, chain(2))
TREE = _case(Traversal(), Draw.IID, BELOW_SECOND)
PATHS = _case(GreedyMultiPath(), Draw.PATHS, TWO_PATHS)
FORKED_BLOCKS = _case(KSeqBlock(), Draw.IID, FORKED)
TREE_WITHOUT = _case(Traversal(), Draw.WITHOUT_REPLACEMENT, BELOW_SECOND)

# --- the table ----------------------------------------------------------------------------------

BIASING = [
    # token-level
    of_text(
        "correction-from-p",
        0.1250,
        replaced(f"{RULES}.rejection.residual", _correction_from_p),
        TOKENS,
    ),
    of_text(
        "residual-of-the-next-row",
        0.0534,
        rewritten(
            f"{RULES}.rejection._along_chain",
            "rows_of(p, places), rows_of(q, places)",
            "p[[i - 1 for i in places]], q[[i - 1 for i in places]]",  # of two rows the other one
        ),
        LONGER,
        MIXED,
    ),
    of_text(
        "residual-without-clamp",
        0.2250,
        replaced(f"{RULES}.rejection.residual", _absolute_residual),
        TOKENS,
    ),
    of_text(
        "residual-without-renormalisation",
        0.0550,
        replaced(f"{RULES}.rejection.residual", _residual_as_it_is),
        IID,
    ),
    of_text(
        "first-draft-token-unverified",
        0.4500,
        replaced(f"{RULES}.rejection.recursive_rejection", _first_token_unverified),
        TOKENS,
    ),
    of_text(
        "p-of-the-next-node",
        0.2730,
        rewritten(
            f"{RULES}.candidate_nodes.CandidateNodes.of",
            "shown.after(where)",
            "shown.after([(owner, node + 1) for owner, node in where])",
        ),
        LONGER,
        MIXED,
    ),
    of_text(
        "bonus-from-the-row-above",
        0.1987,
        rewritten(
            f"{RULES}.last_token.LastToken._weights",
            "if not refused:\n        return self.shown.after(where)",
            "if not refused:\n        return self.shown.after([(o, n - 1) for o, n in where])",
        ),
        LONGER,
        MIXED,
    ),
    of_text(
        "correction-where-a-bonus-is-due",
        0.2675,
        rewritten(
            f"{RULES}.last_token.LastToken._weights",
            "self.nodes.places.get(each)",
            "min(each[1], len(self.nodes.places) - 1)",
        ),
        LONGER,
        MIXED,
    ),
    # siblings
    of_text(
        "refused-candidates-leave-p-as-it-is",
        0.1812,
        rewritten(
            f"{RULES}.rejection._in_turn",
            "some + gain, refused - lost, left",
            "some + gain, refused - lost, rest",
        ),
        IID,
    ),
    of_text(
        "duplicates-removed",
        0.0550,
        replaced(f"{RULES}.candidate_nodes.CandidateNodes.drawn", _duplicates_not_skipped),
        IID,
    ),
    of_text(
        "removed-without-renormalising",
        0.1571,
        replaced(f"{RULES}.rejection.probs_of_draw", _removed_without_renormalising),
        WITHOUT,
    ),
    of_text(
        "removed-tokens-still-in-q",
        0.1571,
        replaced(f"{RULES}.rejection.probs_of_draw", _q_as_it_was),
        WITHOUT,
    ),
    of_text(
        "siblings-sorted-by-q",
        0.0853,
        replaced(
            f"{RULES}.rejection.Rejection.verify_all",
            _sorted_by(_root_row_of_q),
        ),
        WITHOUT,
    ),
    of_text(
        "siblings-sorted-by-p",
        0.2339,
        replaced(f"{RULES}.rejection.Rejection.verify_all", _sorted_by(lambda proposal, p: p[0])),
        WITHOUT,
    ),
    # block verification
    of_text(
        "block-prefix-break", 0.2719, replaced(f"{RULES}.block._holds", _prefix_break), BLOCK, MIXED
    ),
    of_text(
        "block-token-level-residual",
        0.0323,
        replaced(f"{RULES}.block.residual", _token_level_residual),
        BLOCK,
        WIDE,
    ),
    of_text(
        "block-ratios-not-clipped",
        0.0665,
        rewritten(
            f"{RULES}.block._clipped_ratios",
            "(clipped[-1] * of_token).clamp(max=1)",
            "clipped[-1] * of_token",
        ),
        BLOCK,
        MIXED,
    ),
    of_text(
        "block-tests-by-ratio-alone",
        0.1595,
        rewritten(f"{RULES}.block._holds", "if i >= num_nodes", "if True"),
        BLOCK,
        MIXED,
    ),
    of_text(
        "block-test-against-a-product-of-uniforms",
        0.1445,
        replaced(f"{RULES}.block._holds", _product_of_uniforms),
        BLOCK,
        WIDE,
    ),
    of_text(
        "block-as-a-public-port-had-it",
        0.1615,
        _both(
            replaced(f"{RULES}.block._holds", _product_of_uniforms),
            replaced(f"{RULES}.block.residual", _token_level_residual),
        ),
        BLOCK,
        WIDE,
    ),
    # several paths
    of_text(
        "best-path-as-if-it-were-any",
        0.0310,
        replaced(f"{RULES}.tilted.Tilt._weight", lambda self, a, b: torch.ones_like(a)),
        PATHS,
        MIXED,
    ),
    of_text(
        "all-paths-as-if-they-agreed",
        0.0693,
        replaced(f"{RULES}.tilted.Tilt._below", lambda self, q, a: torch.ones_like(a)),
        PATHS,
        MIXED,
    ),
    of_text(
        "worst-path-as-if-it-were-the-best",
        0.1377,
        rewritten(f"{RULES}.gbv._chosen", "max(below", "min(below"),
        PATHS,
        MIXED,
    ),
    of_text(
        "blocks-of-k-seq-residual-of-one-candidate",
        0.1325,
        rewritten(
            f"{RULES}.kseq_block._refuse_all", "torch.where(beta > 0, some / beta, k)", "1.0"
        ),
        FORKED_BLOCKS,
        SPARSE[1],
    ),
    of_text(
        "blocks-of-k-seq-with-rho-1",
        0.2215,
        replaced(f"{RULES}.kseq_block.smallest_rho", lambda p, q, k: torch.ones_like(k)),
        FORKED_BLOCKS,
        SPARSE[1],
    ),
    of_text(
        "blocks-of-k-seq-forget-the-path-above",
        0.5295,
        rewritten(f"{RULES}.kseq_block._refuse_all", "own[:, None] * here.p", "here.p"),
        FORKED_BLOCKS,
        SPARSE[1],
    ),
    # traversal
    of_text(
        "traversal-residual-mass-only",
        0.0163,
        rewritten(f"{RULES}.traversal._refuse_all", "excess / total", "excess"),
        TREE,
        MIXED,
    ),
    of_text(
        "traversal-children-in-the-order-of-their-parents",
        0.0255,
        rewritten(
            f"{RULES}.leaves_first._refused_levels",
            "[at[node] for node in nodes.places if node in at]",
            "[at[node] for node in at if node in nodes.places]",
        ),
        _case(Traversal(), Draw.IID, CROSSED),
        SPARSE[1],
    ),
    of_text(
        "traversal-token-level-residual",
        0.0323,
        rewritten(f"{RULES}.traversal._refuse_all", "residual(ahead, q, p)", "residual(p, q, p)"),
        DEEP_CHAIN,
        WIDE,
    ),
    of_text(
        "traversal-removed-without-renormalising",
        0.0511,
        replaced(f"{RULES}.traversal.probs_of_draw", _removed_without_renormalising),
        TREE_WITHOUT,
        MIXED,
    ),
    # the others
    of_text(
        "k-seq-with-rho-1",
        0.0900,
        replaced(f"{RULES}.kseq.smallest_rho", lambda p, q, k: torch.ones_like(k)),
        _case(KSeq(), Draw.IID, TWO),
    ),
    of_text(
        "k-seq-residual-of-one-candidate",
        0.0893,
        rewritten(f"{RULES}.kseq._odds", "p - once * per_beta", "p - once"),
        _case(KSeq(), Draw.IID, TWO),
    ),
    of_text(
        "top-plus-one-asks-against-q",
        0.2714,
        replaced(f"{RULES}.top_plus_one._without_fixed", lambda nodes: nodes.q),
        _case(TopPlusOne(), Draw.TOP_PLUS_ONE, TWO),
    ),
    of_text(
        "match-then-redraw",
        0.0770,
        replaced(f"{RULES}.match.follow", _match_then_redraw),
        _case(Match(), Draw.SINGLE),
    ),
    of_text(
        "match-goes-on-with-a-child-it-did-not-draw",
        0.4500,
        rewritten(f"{RULES}.walk.bearer", "tree.token_ids[c] == token", "True"),
        _case(Match(), Draw.SINGLE),
    ),
    of_text(
        "withheld-as-if-nothing-was-drafted",
        0.0700,
        rewritten(f"{RULES}.candidate_nodes._nodes_of", "if proposal.withheld", "if False"),
        _case(Rejection(), Draw.FILTERED),
    ),
    of_text(
        "lenient-by-default",
        0.0281,
        rewritten(
            f"{RULES}.rejection.recursive_rejection",
            "lenience: float = 1.0",
            "lenience: float = 0.9",
        ),
        TOKENS,
    ),
]

PRUNED = _case(BlockRule(), Draw.FILTERED, chain(2))
PRUNING = "specdec.core.values.Proposal.pruned"
REPORTED = [
    of_report(
        "withheld-beyond-the-budget",
        rewritten(PRUNING, " and not full", ""),
        lambda: check_pruned_distribution(PRUNED, MIXED, 2, frozenset()),
    ),
    of_report(
        "withheld-below-an-end-token",
        rewritten(PRUNING, " and not ended", ""),
        lambda: check_pruned_distribution(PRUNED, MIXED, 3, frozenset({0, 2})),
    ),
    of_report(
        "block-asks-for-too-much",  # lossless: the longest part is not found
        rewritten(f"{RULES}.block._decided", "accepted = num_drafted\n", "accepted = 0\n"),
        lambda: check_accepted_texts(BLOCK, MIXED, by_blocks),
    ),
    of_report(
        "expected-from-siblings-each-asked-first",
        rewritten(f"{RULES}.odds.shares", "live *= 1 - probability", "live *= 1.0"),
        lambda: check_expected_accepted(_case(Rejection(), Draw.IID, BELOW_SECOND), MIXED),
    ),
    of_report(
        "expected-averages-draws-that-depend-on-each-other",  # unbiased, but far too noisy
        rewritten(
            f"{RULES}.rejection._in_turn",
            "gain = lost if more is None else lost.where(more.squeeze(1), gain)",
            "pass",
        ),
        lambda: check_expected_accepted(_case(Rejection(), Draw.WITHOUT_REPLACEMENT, THREE), MIXED),
    ),
    of_report(
        "overlap-is-the-larger-of-both",
        rewritten(f"{RULES}.rejection.overlaps", "minimum", "maximum"),
        lambda: check_overlap_and_bound(TOKENS, PAIR),
    ),
    of_report(
        "bound-of-one-draw-for-all",
        rewritten(f"{RULES}.verdicts.transport_bound", "below_q**num_draws", "below_q"),
        lambda: check_overlap_and_bound(IID, PAIR),
    ),
    of_report(
        "bound-sorts-the-wrong-way-round",
        replaced(f"{RULES}.overlap.ascending_order", lambda ratios: ratios.argsort(-1, True)),
        lambda: check_overlap_and_bound(IID, PAIR),
    ),
    of_report(
        "kl-the-wrong-way-round",
        rewritten(
            f"{RULES}.lenient.divergences",
            "emitted_probs * (emitted_probs / p)",
            "p * (p / emitted_probs)",
        ),
        lambda: check_divergence(_case(Lenient(0.5), Draw.SINGLE), PAIR),
    ),
]


@pytest.mark.parametrize("mutation", BIASING, ids=names(BIASING))
def test_a_bug_that_biases_the_text_is_found(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's check passes, then the bug is planted and the same check fails."""
    mutation.check()
    mutation.plant(monkeypatch)
    case, pair = mutation.case, mutation.pair
    assert case is not None
    found = bias(case.play(pair.p, pair.q), pair.p, case.length)
    assert found > DETECTED, f"TV {found:.1e}: the pair of distributions does not show this bug"
    assert found == pytest.approx(mutation.tv, abs=5e-4), f"TV {found:.4f}: state it in the table"
    with pytest.raises(AssertionError, match=r"TV|add up"):
        mutation.check()


@pytest.mark.parametrize("mutation", REPORTED, ids=names(REPORTED))
def test_a_bug_in_pruning_or_in_a_report_is_found(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, for what other checks than that of one round's distribution must see."""
    mutation.check()
    mutation.plant(monkeypatch)
    with pytest.raises(AssertionError):
        mutation.check()


def test_a_bug_that_is_none_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """K-SEQ is lossless with any larger rho up to k: planting that must not raise an alarm."""
    replaced(f"{RULES}.kseq.smallest_rho", lambda p, q, k: k)(monkeypatch)
    check_text_distribution(_case(KSeq(), Draw.IID, TWO), PAIR)
    check_text_distribution(_case(KSeq(), Draw.IID, FORKED), RANDOM[3])


def test_the_correction_from_p_is_biased_by_what_the_arithmetic_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the numbers of the table are those of the planted bug, not of something beside it."""
    replaced(f"{RULES}.rejection.residual", _correction_from_p)(monkeypatch)
    p, q = PAIR.p(()), PAIR.q(())
    shared = p.minimum(q)
    expected = 0.5 * float((shared + (1 - shared.sum()) * p - p).abs().sum())
    assert bias(TOKENS.play(PAIR.p, PAIR.q), PAIR.p, 2) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    "plant",
    [
        rewritten(f"{RULES}.walk.bearer", "no such characters", ""),
        rewritten(f"{RULES}.walk.walk", "path", ""),
        replaced(f"{RULES}.walk.no_such_function", None),
    ],
)
def test_a_bug_that_cannot_be_planted_is_an_error(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a bug would silently vanish from the table when the product is written anew."""
    with pytest.raises((AssertionError, AttributeError)):
        plant(monkeypatch)


def test_a_stream_that_accepts_its_own_probability_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`u <= p / q` instead of `u < p / q` lets an impossible token pass where u is 0."""
    stream = ConstantStream(0.0)
    check_zero_is_never_accepted(stream)
    rewritten("specdec.core.randomness.RandomStream.accept", " < ", " <= ")(monkeypatch)
    with pytest.raises(AssertionError, match="impossible"):
        check_zero_is_never_accepted(stream)
