"""Exact enumeration of every rule: the law of the emitted text is p's, to 1e-12.

To test one more rule, draw or shape, add one line to CASES (and, for a new draw, its drafter to
`harness.DRAFTERS`). No random number is drawn here, so nothing can pass or fail by luck.
"""

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from harness import (
    DRAFTERS,
    Block,
    Drafter,
    Parents,
    Play,
    acceptance,
    bias,
    chain,
    completed,
    depth_of,
    draft_rows,
    names,
    played,
    repeated,
    unlikely,
    verified,
)
from toy import Law, Tokens, full_context, memoryless, mixture, text_law, total_variation

from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal
from specdec.decoding.stopping import Stopping
from specdec.verification.enumeration import BranchingStream, outcomes
from specdec.verification.rejection import Rejection

EXACT = 1e-12
RULE = r"specdec\.verification\.[\w.]+"  # how a configuration names one
V = 3
EMPTY: Parents = (-1,)
BINARY: Parents = (-1, 0, 0, 1, 1, 2, 2)  # (2, 2)
UNEVEN: Parents = (-1, 0, 0, 1, 3, 3, 2)  # depths 1 1 2 3 3 2, a node with one child, leaves
FULL: Parents = (-1, 0, 0, 0, 2, 2, 2)  # all V tokens as children: the root never recovers


@dataclass(frozen=True)
class Case:
    """A rule, the way in which its candidates are drawn, and the shape of the tree."""

    rule: VerificationRule
    draw: Draw
    parents: Parents
    drafter: Drafter | None = None  # instead of the draw's own

    def play(self, p: Law, q: Law) -> Play:
        return played(self.rule, self.drafter or DRAFTERS[self.draw], self.parents, p, q)

    @property
    def length(self) -> int:
        """What one round can emit at most."""
        return depth_of(self.parents) + 1

    def __str__(self) -> str:
        drafter = self.drafter.__name__ if self.drafter else self.draw.value
        return f"{type(self.rule).__name__}-{drafter}-{','.join(map(str, self.parents[1:]))}"


CASES = [
    Case(Rejection(), Draw.SINGLE, EMPTY),
    Case(Rejection(), Draw.SINGLE, chain(1)),
    Case(Rejection(), Draw.SINGLE, chain(2)),
    Case(Rejection(), Draw.SINGLE, chain(3)),
    Case(Rejection(), Draw.DETERMINISTIC, EMPTY),
    Case(Rejection(), Draw.DETERMINISTIC, chain(1)),
    Case(Rejection(), Draw.DETERMINISTIC, chain(2)),
    Case(Rejection(), Draw.DETERMINISTIC, chain(3)),
    Case(Rejection(), Draw.DETERMINISTIC, chain(3), unlikely),
    Case(Rejection(), Draw.DETERMINISTIC, BINARY),
    Case(Rejection(), Draw.DETERMINISTIC, BINARY, unlikely),
    Case(Rejection(), Draw.DETERMINISTIC, BINARY, repeated),
    Case(Rejection(), Draw.DETERMINISTIC, UNEVEN),
    Case(Rejection(), Draw.DETERMINISTIC, UNEVEN, unlikely),
    Case(Rejection(), Draw.DETERMINISTIC, FULL),
]


@dataclass(frozen=True)
class Pair:
    """A verifier's and a draft's law."""

    name: str
    p: Law
    q: Law

    def __str__(self) -> str:
        return self.name


def _random_pair(seed: int, concentration: float, likeness: float) -> Pair:
    p = full_context(seed, concentration, V)
    q = mixture(p, full_context(seed + 1000, concentration, V), likeness)
    return Pair(f"random-{seed}-{concentration}-{likeness}", p, q)


RANDOM = [
    _random_pair(seed, concentration, likeness)
    for seed, (concentration, likeness) in enumerate(product((0.15, 0.7, 4.0), (0.0, 0.4, 0.9)))
]
SOFT = full_context(77, 1.0, V)
HAND = [
    Pair("equal", SOFT, SOFT),
    Pair("disjoint", memoryless(0.4, 0.6, 0.0), memoryless(0.0, 0.0, 1.0)),
    Pair("nearly-disjoint", memoryless(0.0, 0.3, 0.7), memoryless(0.6, 0.4, 0.0)),
    Pair("one-hot-p", memoryless(0.0, 1.0, 0.0), memoryless(0.2, 0.3, 0.5)),
    Pair("one-hot-q", SOFT, memoryless(0.0, 1.0, 0.0)),
    Pair("one-hot-both-equal", memoryless(1.0, 0.0, 0.0), memoryless(1.0, 0.0, 0.0)),
    Pair("one-hot-both-unlike", memoryless(1.0, 0.0, 0.0), memoryless(0.0, 0.0, 1.0)),
    Pair("q-lacks-a-token", SOFT, memoryless(0.5, 0.5, 0.0)),
    Pair("p-lacks-a-token", memoryless(0.5, 0.5, 0.0), SOFT),
    Pair("ties", memoryless(1 / 3, 1 / 3, 1 / 3), memoryless(1 / 3, 1 / 3, 1 / 3)),
    Pair("ties-in-q", SOFT, memoryless(1 / 3, 1 / 3, 1 / 3)),
    Pair("ties-of-p-and-q", memoryless(0.25, 0.25, 0.5), memoryless(0.25, 0.5, 0.25)),
]


@pytest.mark.parametrize("pair", [*RANDOM, *HAND], ids=names([*RANDOM, *HAND]))
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_the_text_has_exactly_the_verifiers_law(case: Case, pair: Pair) -> None:
    found = bias(case.play(pair.p, pair.q), pair.p, case.length)
    assert found < EXACT, f"TV {found:.3e}: {case} does not emit p's law for the pair {pair}"


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_every_outcome_is_counted(case: Case) -> None:
    for pair in HAND:
        total = sum(outcomes(case.play(pair.p, pair.q)).values())
        assert abs(total - 1) < EXACT, f"{pair}: outcomes add up to {total}"


def test_every_configured_rule_is_enumerated() -> None:
    """A rule that has a YAML file but no line in CASES is not known to be lossless."""
    folder = Path(__file__).parents[2] / "configs" / "verification"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))]
    configured = {
        name for text in texts for name in re.findall(r"specdec\.verification[\w.]*", text)
    }
    assert configured, f"no rule found in {folder}"
    enumerated = {f"{type(c.rule).__module__}.{type(c.rule).__qualname__}" for c in CASES}
    assert configured <= enumerated, f"no line in CASES for {configured - enumerated}"


@pytest.mark.parametrize("rule", {type(case.rule): case.rule for case in CASES}.values())
def test_every_draw_that_a_rule_claims_is_enumerated(rule: VerificationRule) -> None:
    tested = {case.draw for case in CASES if type(case.rule) is type(rule)}
    assert rule.lossless_for == tested, f"{type(rule).__name__}: claims and lines in CASES differ"


# --- acceptance ---------------------------------------------------------------------------------


def _prefix_overlaps(p: Law, q: Law, gamma: int) -> list[float]:
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


def test_float32_tables_give_the_law_to_float32_rounding() -> None:
    """Real models give float32 tables; the rule must not lose more than they have."""
    p, q = (lambda text, law=law: law(text).float() for law in (RANDOM[4].p, RANDOM[4].q))
    assert bias(Case(Rejection(), Draw.SINGLE, chain(3)).play(p, q), p, 4) < 1e-6


# --- pruning ------------------------------------------------------------------------------------

ENDS = [frozenset[int](), frozenset({0}), frozenset({2}), frozenset({0, 2})]


def _pruned_round(case: Case, pair: Pair, budget: int, ends: frozenset[int]) -> Play:
    """Play a round as the decoder does: prune, verify, cut the block at the end of the text."""

    def play(stream: Stream) -> Block:
        drafter = case.drafter or DRAFTERS[case.draw]
        proposal = drafter(case.parents, pair.q, stream).pruned(budget - 1, ends)
        block = verified(case.rule, proposal, pair.p, stream)
        text, _ = Stopping(budget, ends).cut((), block.token_ids)
        return Block(tuple(text), min(block.num_accepted, len(text)))

    return play


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: f"ends{sorted(ends)}")
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_pruning_keeps_the_law_of_the_text(case: Case, ends: frozenset[int]) -> None:
    for pair in (RANDOM[3], RANDOM[4], HAND[7]):
        for budget in range(1, case.length + 2):
            blocks = outcomes(_pruned_round(case, pair, budget, ends))
            longest = max(len(block.token_ids) for block in blocks)
            assert longest <= budget, f"{longest} tokens emitted with {budget} left"
            law = completed(blocks, pair.p, budget, ends)
            found = total_variation(law, text_law(pair.p, budget, ends))
            assert found < EXACT, f"TV {found:.3e} for {pair}, budget {budget}, ends {set(ends)}"


@pytest.mark.parametrize("parents", [chain(3), BINARY, UNEVEN, FULL], ids=str)
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: f"ends{sorted(ends)}")
def test_pruning_keeps_each_row_with_its_node(parents: Parents, ends: frozenset[int]) -> None:
    """After nodes are renumbered, row i must still be the law after node i's text."""
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
