"""Rules that verify several whole paths: what each text is accepted with, and who dominates whom.

`x` is an emitted text, as in test_dominance.py. A single path is what block verification is best
at; that several paths are accepted more often than one is no matter of course.
"""

import re
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from specdec.core.protocols import VerificationRule
from specdec.core.values import Draw
from specdec.proof.drafting import chain
from specdec.verification.kseq import NUM_ROUNDS, NUM_STEPS, smallest_rho
from tests.support.harness import names
from tests.support.rule_cases import (
    EXACT,
    HAND,
    PAIRS,
    RANDOM,
    SPARSE,
    THREE,
    THREE_PATHS,
    TWO,
    TWO_PATHS,
    BlockRule,
    Case,
    GreedyMultiPath,
    KSeq,
    KSeqBlock,
    Pair,
    Traversal,
    V,
)
from tests.support.rule_checks import (
    accepted_texts,
    check_same_distribution,
)
from tests.support.toy import Conditional, TextDistribution, Tokens

SHAPES = {2: TWO_PATHS, 3: THREE_PATHS}
SEARCHED = 1 / NUM_STEPS**NUM_ROUNDS  # of k - 1: how far from the smallest rho may be
SEVERAL = [RANDOM[3], RANDOM[4], HAND[0], HAND[4], HAND[7]]
several_pairs = pytest.mark.parametrize("pair", SEVERAL, ids=names(SEVERAL))
UNLIKE, HALF_ALIKE, ALIKE, EQUAL = RANDOM[3], RANDOM[4], RANDOM[5], HAND[0]


@cache
def _accepted(rule: VerificationRule, num_paths: int, pair: Pair) -> TextDistribution:
    """Return P(A >= k and x) of paths of two tokens."""
    if num_paths == 1:
        return accepted_texts(Case(rule, Draw.SINGLE, chain(2)), pair)
    return accepted_texts(Case(rule, Draw.PATHS, SHAPES[num_paths]), pair)


BLOCK, TRAVERSAL, K_SEQ, GREEDY = BlockRule(), Traversal(), KSeqBlock(), GreedyMultiPath()


def _check(
    rule: VerificationRule,
    num_paths: int,
    pair: Pair,
    expected: Callable[[Conditional, Conditional, Tokens], float],
) -> None:
    """Each text is accepted as often as its closed form says."""
    found = _accepted(rule, num_paths, pair)
    for text in (x for depth in (1, 2) for x in product(range(V), repeat=depth)):
        wanted = expected(pair.p, pair.q, text)
        assert found.get(text, 0.0) == pytest.approx(wanted, abs=EXACT), text


def _dominates(rule: VerificationRule, pair: Pair, slack: float = EXACT) -> None:
    ours, blocks = _accepted(rule, 2, pair), _accepted(BLOCK, 1, pair)
    for text, mass in blocks.items():
        found = ours.get(text, 0.0)
        assert found >= mass - slack, f"{text}: {found} < {mass} of block verification"


# --- K-SEQ on blocks ----------------------------------------------------------------------------


def _by_scaled_blocks(num_paths: int) -> Callable[[Conditional, Conditional, Tokens], float]:
    """Return s / beta times the least of p(x) / rho and q(x_1 .. x_j) p(x_j+1 .. x_k), j >= 1."""

    def accepted(p: Conditional, q: Conditional, text: Tokens) -> float:
        root, drawn = p(())[None], q(())[None]
        rho = float(smallest_rho(root, drawn, root.new_tensor([[num_paths]])))
        beta = float((root / rho).minimum(drawn).sum())
        factor = (1 - (1 - beta) ** num_paths) / beta if beta > 0 else num_paths
        likely, running = 1.0, 1 / rho
        for i, token in enumerate(text):
            likely *= float(q(text[:i])[token])
            running = min(running * float(p(text[:i])[token]), likely)
        return running * factor

    return accepted


@several_pairs
def test_k_seq_on_blocks_accepts_each_text_as_often_as_its_closed_form_says(pair: Pair) -> None:
    _check(K_SEQ, 2, pair, _by_scaled_blocks(2))


@pytest.mark.thorough
def test_three_paths_have_a_closed_form_too() -> None:
    _check(K_SEQ, 3, SPARSE[1], _by_scaled_blocks(3))


@several_pairs
def test_k_seq_on_blocks_accepts_every_text_at_least_as_often_as_block_verification(
    pair: Pair,
) -> None:
    """Text by text, hence for every k and on average: rho is at least 1."""
    _dominates(K_SEQ, pair, slack=SEARCHED)


@several_pairs
def test_traversal_of_paths_accepts_every_text_at_least_as_often(pair: Pair) -> None:
    """It asks the first path as block verification does, and the others if that is refused."""
    _dominates(TRAVERSAL, pair)


@pytest.mark.parametrize("rule", [K_SEQ, TRAVERSAL], ids=lambda rule: type(rule).__name__)
def test_two_paths_are_accepted_more_often_than_one(rule: VerificationRule) -> None:
    """Else the tests above would pass for a rule that looks at the first path alone."""
    gain = sum(_accepted(rule, 2, HALF_ALIKE).values())
    assert gain > sum(_accepted(BLOCK, 1, HALF_ALIKE).values()) + 0.1


@pytest.mark.parametrize("parents", [TWO, THREE], ids=str)
@pytest.mark.parametrize("pair", [*RANDOM, *HAND], ids=names([*RANDOM, *HAND]))
def test_k_seq_on_blocks_of_one_token_is_k_seq(parents: tuple[int, ...], pair: Pair) -> None:
    check_same_distribution(Case(K_SEQ, Draw.IID, parents), KSeq(), pair)


# --- greedy multi-path --------------------------------------------------------------------------


def _by_chosen_blocks(num_paths: int) -> Callable[[Conditional, Conditional, Tokens], float]:
    """Return what block verification accepts of a path that is the best of several."""

    def key(p: Conditional, q: Conditional, text: Tokens) -> list[tuple[float, int]]:
        found: list[tuple[float, int]] = []
        for i, token in enumerate(text):
            ours, theirs = float(p(text[:i])[token]), float(q(text[:i])[token])
            found.append((ours / theirs if theirs else 0.0, token))
        return found

    def likely(q: Conditional, text: Tokens) -> float:
        mass = 1.0
        for i, token in enumerate(text):
            mass *= float(q(text[:i])[token])
        return mass

    def chosen(p: Conditional, q: Conditional, text: Tokens) -> float:
        """Return P(the best of all begins so): by comparing with every other beginning."""
        own = key(p, q, text)
        others = product(range(V), repeat=len(text))
        worse = sum(likely(q, x) for x in others if likely(q, x) and key(p, q, x) < own)
        return (worse + likely(q, text)) ** num_paths - worse**num_paths

    def accepted(p: Conditional, q: Conditional, text: Tokens) -> float:
        running = 1.0
        for i, token in enumerate(text):
            drawn = chosen(p, q, text[: i + 1]) if likely(q, text[: i + 1]) else 0.0
            running = min(running * float(p(text[:i])[token]), drawn)
        return running

    return accepted


@several_pairs
def test_the_best_of_two_paths_is_verified_as_a_block_of_its_own_distribution(pair: Pair) -> None:
    """Stronger than losslessness: the tilted q is that of the chosen path, to the last digit."""
    _check(GREEDY, 2, pair, _by_chosen_blocks(2))


@pytest.mark.thorough
def test_the_best_of_three_paths_too() -> None:
    _check(GREEDY, 3, SPARSE[1], _by_chosen_blocks(3))


@pytest.mark.parametrize("rule", [GREEDY, K_SEQ], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("pair", PAIRS, ids=names(PAIRS))
def test_one_path_is_block_verification(rule: VerificationRule, pair: Pair) -> None:
    """On every single draft, what is emitted has the same distribution."""
    check_same_distribution(Case(rule, Draw.SINGLE, chain(2)), BLOCK, pair)


def test_choosing_a_path_helps_where_draft_and_verifier_disagree() -> None:
    gain = sum(_accepted(GREEDY, 2, UNLIKE).values())
    assert gain > sum(_accepted(BLOCK, 1, UNLIKE).values()) + 0.1


def test_choosing_a_path_does_harm_where_they_agree() -> None:
    """One path of an equal draft is always accepted; the best of two is not drawn from p."""
    assert sum(_accepted(BLOCK, 1, EQUAL).values()) == pytest.approx(2.0, abs=EXACT)
    assert sum(_accepted(GREEDY, 2, EQUAL).values()) < 2.0 - 0.3


# --- the table of the documentation ---------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "trees-and-rules.md"
ROWS = {"unlike": UNLIKE, "half alike": HALF_ALIKE, "alike": ALIKE, "equal": EQUAL}


def test_the_table_of_expected_tokens_is_as_enumerated() -> None:
    """E[A] of one path of two tokens, and of two paths."""
    text = DOCS.read_text(encoding="utf-8")
    found = re.search(r"^\| draft and verifier \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None, "docs/trees-and-rules.md has no such table"
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()]
    assert [line[0] for line in lines] == list(ROWS)
    for name, *cells in lines:
        wanted = [
            sum(_accepted(BLOCK, 1, ROWS[name]).values()),
            *(sum(_accepted(rule, 2, ROWS[name]).values()) for rule in (TRAVERSAL, GREEDY, K_SEQ)),
        ]
        assert cells == [f"{each:.3f}" for each in wanted], f"{name}: state what is enumerated"
