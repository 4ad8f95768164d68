"""Exact enumeration of every rule: the distribution of the emitted text is p's, to 1e-12.

To test one more rule, draw or shape, add one line to `rule_cases.CASES` (and, for a new draw, its
drafter to `harness.DRAFTERS`). No random number is drawn here, so nothing can pass or fail by luck.
"""

import pytest
import torch

from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal
from specdec.proof.drafting import DRAFTERS, Parents, chain, draft_rows
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.verification.block import Block as BlockRule
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from tests.support.harness import Block, acceptance, bias, depth_of, names, verified
from tests.support.rule_cases import (
    BINARY,
    CASES,
    EXACT,
    FIRST_PAIRS,
    FORKED,
    FULL,
    HAND,
    RANDOM,
    SPARSE,
    UNEVEN,
    Case,
    Pair,
    configured_rules,
)
from tests.support.rule_checks import ENDS, check_pruned_distribution, check_text_distribution
from tests.support.toy import Conditional, Tokens, memoryless

LINES = [
    pytest.param(
        *(case, pair),
        marks=[] if pair in FIRST_PAIRS else pytest.mark.thorough,
        id=f"{case}-{pair}",
    )
    for case in CASES
    for pair in case.pairs
]


@pytest.mark.parametrize(("case", "pair"), LINES)
def test_the_text_has_exactly_the_verifiers_distribution(case: Case, pair: Pair) -> None:
    """One round, completed with p, is p's text; and all outcomes together have probability 1."""
    check_text_distribution(case, pair)


def test_every_configured_rule_is_enumerated() -> None:
    """A rule that claims to be lossless but has no line in CASES is not known to be.

    Those that claim it for no draw at all are measured in test_lossy_rules.py instead.
    """
    claiming = {rule for rule in configured_rules() if rule.lossless_for}
    enumerated = {type(case.rule) for case in CASES}
    assert claiming == enumerated, f"no line in CASES for {claiming - enumerated}"


@pytest.mark.parametrize(
    "rule", {type(case.rule): case.rule for case in CASES}.values(), ids=lambda r: type(r).__name__
)
def test_every_draw_that_a_rule_claims_is_enumerated(rule: VerificationRule) -> None:
    """A draw in `lossless_for` needs a line in CASES, and so do trees, where it has them."""
    ours = [case for case in CASES if type(case.rule) is type(rule)]
    tested = {case.draw for case in ours}
    assert rule.lossless_for == tested, f"{type(rule).__name__}: claims and lines in CASES differ"
    for draw in tested - {Draw.SINGLE, Draw.FILTERED}:
        widest = max(
            len(case.parents) - depth_of(case.parents) for case in ours if case.draw is draw
        )
        assert widest > 1, f"{type(rule).__name__}: no tree of {draw.value} candidates in CASES"


# --- acceptance ---------------------------------------------------------------------------------


def _prefix_overlaps(p: Conditional, q: Conditional, gamma: int) -> list[float]:
    """Return sum over x_1 .. x_k of prod_i min(p, q)(x_i), for k = 1 .. gamma."""
    masses: dict[Tokens, float] = {(): 1.0}
    overlaps: list[float] = []
    for _ in range(gamma):
        masses = {
            (*text, token): mass * overlap
            for text, mass in masses.items()
            for token, overlap in enumerate(p(text).minimum(q(text)).tolist())
        }
        overlaps.append(sum(masses.values()))
    return overlaps


@pytest.mark.parametrize("pair", RANDOM, ids=names(RANDOM))
@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_acceptance_of_a_sampled_chain_is_its_closed_form(gamma: int, pair: Pair) -> None:
    """P(A >= k) is the mass that p and q share along a chain; E[A] is the sum of it."""
    found = acceptance(Case(Rejection(), Draw.SINGLE, chain(gamma)).play(pair.p, pair.q))
    expected = _prefix_overlaps(pair.p, pair.q, gamma)
    assert found[0] == pytest.approx(float(pair.p(()).minimum(pair.q(())).sum()), abs=EXACT), (
        "P(A >= 1) is not sum_v min(p, q): drafts are thrown away (or accepted too easily)"
    )
    assert found == pytest.approx(expected, abs=EXACT)
    assert sum(found) == pytest.approx(sum(expected), abs=EXACT)


@pytest.mark.parametrize("pair", RANDOM, ids=names(RANDOM))
@pytest.mark.parametrize("parents", [chain(2), BINARY, UNEVEN, FULL], ids=str)
def test_acceptance_of_point_masses_is_the_mass_of_the_tree(parents: Parents, pair: Pair) -> None:
    """P(A >= d) is what p gives to the tree's paths of length d."""
    found = acceptance(Case(Rejection(), Draw.DETERMINISTIC, parents).play(pair.p, pair.q))
    tree = DRAFTERS[Draw.DETERMINISTIC](parents, pair.q, BranchingStream([])).tree
    mass = [1.0]
    for node, parent in enumerate(parents[1:], start=1):
        row = draft_rows(tree, pair.p)[parent]
        mass.append(mass[parent] * float(row[tree.token_ids[node]]))
    expected = [
        sum(m for m, depth in zip(mass, tree.depths, strict=True) if depth == level)
        for level in range(1, depth_of(parents) + 1)
    ]
    assert found == pytest.approx(expected[: len(found)], abs=EXACT)
    assert sum(expected[len(found) :]) < EXACT


# --- rows and rounding --------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [RANDOM[4], HAND[1]], ids=names([RANDOM[4], HAND[1]]))
def test_rows_of_childless_nodes_may_be_there_and_change_nothing(pair: Pair) -> None:
    def play(stream: Stream) -> Block:
        proposal = DRAFTERS[Draw.SINGLE](chain(2), pair.q, stream)
        rows = draft_rows(proposal.tree, pair.q)
        assert len(rows) == 3
        return verified(Rejection(), Proposal(proposal.tree, Draw.SINGLE, rows), pair.p, stream)

    assert bias(play, pair.p, 3) < EXACT


def test_a_residual_that_rounding_leaves_without_mass_falls_back_to_p() -> None:
    """All of p lies just below q: the token may be rejected, and then (p - q)+ is zero."""
    q = memoryless(0.5, 0.25, 0.25)
    p = memoryless(*(0.5 * (1 - 2**-50), 0.25 * (1 - 2**-50), 0.25 * (1 - 2**-50)))
    blocks = outcomes(Case(Rejection(), Draw.SINGLE, chain(1)).play(p, q))
    rejected = {block.token_ids: mass for block, mass in blocks.items() if block.num_accepted == 0}
    assert rejected, "no rejection was enumerated, so this test shows nothing"
    mass = sum(rejected.values())
    assert mass < 1e-14
    for (token,), share in rejected.items():
        assert share / mass == pytest.approx(float(p(())[token]), rel=1e-6)


def test_float32_tables_give_the_distribution_to_float32_rounding() -> None:
    """Real models give float32 tables; the rule must not lose more than they have."""
    p, q = (
        lambda text, distribution=distribution: distribution(text).float()
        for distribution in (RANDOM[4].p, RANDOM[4].q)
    )
    assert bias(Case(Rejection(), Draw.SINGLE, chain(3)).play(p, q), p, 4) < 1e-6


# --- pruning ------------------------------------------------------------------------------------


def _prunable() -> list[Case]:
    """Leave out what takes long and differs from a smaller case in nothing that pruning touches."""
    quick = (Rejection, Match, BlockRule)
    return [
        case
        for case in CASES
        if case.draw is Draw.DETERMINISTIC
        or len(case.parents) <= 3
        or (case.parents == chain(3) and isinstance(case.rule, quick))
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: f"ends{sorted(ends)}")
@pytest.mark.parametrize("case", _prunable(), ids=names(_prunable()))
def test_pruning_keeps_the_distribution_of_the_text(case: Case, ends: frozenset[int]) -> None:
    """Played as the decoder plays it, with every budget, the text still has p's distribution."""
    for pair in (RANDOM[3], RANDOM[4], HAND[7]):
        for budget in range(1, case.length + 2):
            check_pruned_distribution(case, pair, budget, ends)


TREES_TO_PRUNE = [case for case in CASES if case.parents == FORKED]


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: f"ends{sorted(ends)}")
@pytest.mark.parametrize("case", TREES_TO_PRUNE, ids=names(TREES_TO_PRUNE))
def test_pruning_drawn_trees_keeps_the_distribution_of_the_text(
    case: Case, ends: frozenset[int]
) -> None:
    """As above, where draws are so many that one pair of distributions must do."""
    for budget in range(1, case.length + 1):
        check_pruned_distribution(case, SPARSE[0], budget, ends)


@pytest.mark.parametrize("parents", [chain(3), BINARY, UNEVEN, FULL], ids=str)
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: f"ends{sorted(ends)}")
def test_pruning_keeps_each_row_with_its_node(parents: Parents, ends: frozenset[int]) -> None:
    """After nodes are renumbered, row i must still be the distribution after node i's text."""
    q = RANDOM[4].q

    def play(stream: Stream) -> int:
        proposal = DRAFTERS[Draw.IID](parents, q, stream)
        for max_depth in range(5):
            pruned = proposal.pruned(max_depth, ends)
            tree, rows = pruned.tree, pruned.draft_probs
            assert rows is not None
            with_children = [node for node in range(len(tree.parents)) if tree.children[node]]
            assert len(rows) >= 1 + max(with_children, default=-1)
            kept = draft_rows(tree, q, len(rows))
            assert torch.equal(rows, kept), f"rows were mixed up when {proposal.tree} was pruned"
            assert max(tree.depths) <= max_depth
            assert not any(tree.token_ids[n] in ends for n in with_children if n > 0)
        return proposal.tree.num_draft_tokens

    assert list(outcomes(play)) == [len(parents) - 1]


def test_an_end_token_at_the_root_ends_nothing() -> None:
    """A prompt may end with an end token (of a chat turn, say): what follows it is text."""
    tree = CandidateTree.chain(2, (1, 0))
    assert tree.pruned(5, frozenset({2}))[0] == tree
