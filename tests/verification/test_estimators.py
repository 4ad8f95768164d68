"""What verdicts report for the metrics: unbiased, about the right nodes, as the formulas say."""

import pytest
import torch

from specdec.core.randomness import RandomStream
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal
from specdec.proof.drafting import chain
from specdec.verification.kseq import KSeq
from specdec.verification.lenient import Lenient
from specdec.verification.match import Match
from specdec.verification.overlap import transport_bound
from specdec.verification.top_k import TopK
from specdec.verification.typical import Typical
from tests.support.harness import names
from tests.support.rule_cases import (
    CASES,
    CHAINS,
    HAND,
    RANDOM,
    SPARSE,
    TWO,
    UNEVEN,
    Case,
    Pair,
    Rejection,
    cases,
)
from tests.support.rule_checks import (
    ENDS,
    best_transport,
    check_expected_accepted,
    check_overlap_and_bound,
    reports,
)
from tests.support.toy import full_context

LOSSY = [
    case
    for rule in (Lenient(0.5), Typical(0.3, 0.6), TopK(2))
    for case in (
        *cases(rule, Draw.SINGLE, CHAINS[:3]),
        *cases(rule, Draw.DETERMINISTIC, (TWO, UNEVEN)),
    )
]
MEASURED = [*(case for case in CASES if len(case.parents) <= 5), *LOSSY]
SMALL = [case for case in MEASURED if len(case.parents) == 3]  # chains of two, and two children
FIXED = [case for case in CASES if case.draw is Draw.DETERMINISTIC and len(case.parents) > 5]


def _pairs(case: Case) -> list[Pair]:
    wide = len(case.parents) == 5 and case.draw is not Draw.DETERMINISTIC
    certain = HAND[4]  # a draft with one token has fewer than there are children
    return [SPARSE[0], certain] if wide else [RANDOM[3], RANDOM[4], HAND[2], certain]


@pytest.mark.thorough
@pytest.mark.parametrize("case", [*MEASURED, *FIXED], ids=names([*MEASURED, *FIXED]))
def test_the_expected_number_of_accepted_tokens_is_unbiased(case: Case) -> None:
    """Its mean over all outcomes is E[A], to 1e-12; its variance is at most that of A."""
    for pair in _pairs(case):
        check_expected_accepted(case, pair)


@pytest.mark.parametrize("ends", ENDS[1:], ids=str)
@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_it_is_unbiased_on_trees_that_are_cut(case: Case, ends: frozenset[int]) -> None:
    """By the budget, or below an end token."""
    for budget in range(1, case.length + 1):
        check_expected_accepted(case, RANDOM[4], budget, ends)


@pytest.mark.parametrize("case", [*MEASURED, *FIXED], ids=names([*MEASURED, *FIXED]))
def test_overlap_and_bound_are_those_of_the_visited_nodes(case: Case) -> None:
    """Overlap is sum min(p, q); the bound is the best of ALL sets of tokens, by brute force."""
    for pair in _pairs(case)[-2:]:
        check_overlap_and_bound(case, pair)


def test_averaging_lowers_the_variance_of_a_chain_by_far() -> None:
    """Else `expected_accepted` could be the count itself."""
    distribution = reports(Case(Rejection(), Draw.SINGLE, chain(3)), RANDOM[4])
    mean = sum(mass * report.num_accepted for report, mass in distribution.items())
    counted = sum(mass * (report.num_accepted - mean) ** 2 for report, mass in distribution.items())
    averaged = sum(
        mass * (report.expected_accepted - mean) ** 2 for report, mass in distribution.items()
    )
    assert averaged < 0.7 * counted


# --- the transport bound ------------------------------------------------------------------------


@pytest.mark.parametrize("num_draws", [1, 2, 3, 5])
@pytest.mark.parametrize("vocab_size", [2, 3, 6])
def test_the_transport_bound_is_the_best_of_all_sets(vocab_size: int, num_draws: int) -> None:
    """A beginning of the tokens sorted by p / q is as good as any of the 2^V sets."""
    p = torch.stack([full_context(seed, 0.6, vocab_size)(()) for seed in range(40)])
    q = torch.stack([full_context(seed + 99, 0.6, vocab_size)(()) for seed in range(40)])
    q[::4, 0] = 0.0  # tokens that only p has, and only q
    p[1::4, 1] = 0.0
    p[2::8], q[2::8] = p[2::8].round(decimals=1), q[2::8].round(decimals=1)  # and ties
    p, q = p / p.sum(dim=-1, keepdim=True), q / q.sum(dim=-1, keepdim=True)
    usable = (p.isfinite() & q.isfinite()).all(dim=-1)
    assert usable.sum() >= 30
    p, q = p[usable], q[usable]
    expected = [best_transport(*rows, num_draws) for rows in zip(p, q, strict=True)]
    assert transport_bound(p, q, num_draws).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_bound_of_one_draw_is_the_overlap() -> None:
    """1 - TV(p, q): nothing beats a maximal coupling."""
    p = torch.stack([full_context(seed, 0.6, 6)(()) for seed in range(40)])
    q = torch.stack([full_context(seed + 99, 0.6, 6)(()) for seed in range(40)])
    overlap = p.minimum(q).sum(dim=-1)
    assert torch.allclose(transport_bound(p, q, 1), overlap, rtol=0, atol=1e-12)


def test_the_bound_grows_with_each_draw_and_each_row_has_its_own_number() -> None:
    """Rows with 1, 2 and 4 draws in one call."""
    p, q = full_context(3, 0.6, 6)(()).expand(3, -1), full_context(4, 0.6, 6)(()).expand(3, -1)
    together = transport_bound(p, q, torch.tensor([[1], [2], [4]])).tolist()
    assert together == pytest.approx([best_transport(p[0], q[0], k) for k in (1, 2, 4)], abs=1e-12)
    assert together[0] < together[1] < together[2]


def test_the_bound_is_of_the_roots_own_draws() -> None:
    """Two, where a node below has three: the bound of three would be larger."""
    tree = CandidateTree((0, 0, 1, 0, 1, 2), (-1, 0, 0, 1, 1, 1))
    p, q = full_context(3, 0.6)(()), full_context(4, 0.6)(())
    proposal = Proposal(tree, Draw.IID, q.expand(6, -1))
    for rule in (Rejection(), KSeq(), Match()):
        verdict = rule.verify(proposal, p.expand(6, -1), RandomStream(1))
        assert verdict.bound == pytest.approx([best_transport(p, q, 2)], abs=1e-12)
    assert best_transport(p, q, 2) < best_transport(p, q, 3) - 0.01


def test_equal_distributions_have_a_bound_of_one() -> None:
    """Also where a token is impossible to both, and where a row is a point mass."""
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert transport_bound(rows, rows, 2).tolist() == [1.0, 1.0]
    assert transport_bound(rows, rows, 1).tolist() == [1.0, 1.0]
    assert transport_bound(rows[:1], rows[1:], 3).item() == pytest.approx(0.5)
