"""How much each rule accepts, by closed forms, and which rule accepts more than which.

`x` is an emitted text: P(A >= k and the first k tokens are x) averages over what was drafted behind
x, since a rule that looks ahead makes use of it. Given the whole draft, block verification may
well accept less than token-level rejection does.
"""

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Tensor

from specdec.core.protocols import VerificationRule
from specdec.core.values import Draw
from specdec.proof.drafting import DRAFTERS, chain, drafts
from specdec.verification.lenient import Lenient
from specdec.verification.overlap import transport_bound
from tests.support.harness import names
from tests.support.rule_cases import (
    CASES,
    CHAINS,
    EXACT,
    FORKED,
    HAND,
    PAIRS,
    RANDOM,
    THREE,
    TWO,
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
    accepted_texts,
    best_transport,
    by_blocks,
    by_matches,
    by_tokens,
    check_accepted_texts,
    check_first_acceptance,
    check_same_distribution,
)
from tests.support.toy import Conditional, Tokens

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=names(PAIRS))
several_pairs = pytest.mark.parametrize("pair", [*RANDOM, HAND[7]], ids=names([*RANDOM, HAND[7]]))
some_pairs = pytest.mark.parametrize("pair", RANDOM[3:6], ids=names(RANDOM[3:6]))
several_draws = pytest.mark.parametrize("parents", [chain(1), TWO, THREE], ids=str)

# --- chains -------------------------------------------------------------------------------------

BLOCKS: tuple[VerificationRule, ...] = (
    *(BlockRule(), Traversal(), KSeqBlock(), GreedyMultiPath()),
)
BY_TOKENS: tuple[VerificationRule, ...] = (*(Rejection(), KSeq(), TopPlusOne(), Lenient(1.0)),)
CLOSED_FORMS: Mapping[VerificationRule, Callable[[Conditional, Conditional, Tokens], float]] = {
    **dict.fromkeys(BLOCKS, by_blocks),
    Match(): by_matches,
    **dict.fromkeys(BY_TOKENS, by_tokens),
}


@several_pairs
@pytest.mark.parametrize("rule", CLOSED_FORMS, ids=lambda rule: type(rule).__name__)
def test_every_text_is_accepted_as_often_as_its_closed_form_says(
    rule: VerificationRule, pair: Pair
) -> None:
    """Stronger than losslessness: a rule that threw drafts away would be lossless too."""
    check_accepted_texts(Case(rule, Draw.SINGLE, chain(3)), pair, CLOSED_FORMS[rule])


@every_pair
def test_block_verification_accepts_every_text_at_least_as_often(pair: Pair) -> None:
    """P(A >= k and x): text by text, hence for every k, not only on average."""
    by_block = accepted_texts(Case(BlockRule(), Draw.SINGLE, chain(3)), pair)
    by_token = accepted_texts(Case(Rejection(), Draw.SINGLE, chain(3)), pair)
    for text, mass in by_token.items():
        assert by_block[text] >= mass - EXACT, f"{text}: {by_block[text]} < {mass}"


def test_block_verification_accepts_more_than_rejection_somewhere() -> None:
    """Else the test above would pass for two names of one rule."""
    pair = RANDOM[4]
    by_block = accepted_texts(Case(BlockRule(), Draw.SINGLE, chain(3)), pair)
    by_token = accepted_texts(Case(Rejection(), Draw.SINGLE, chain(3)), pair)
    assert sum(by_block.values()) > sum(by_token.values()) + 1e-3


@every_pair
@pytest.mark.parametrize("draw", [Draw.SINGLE, Draw.FILTERED], ids=lambda draw: draw.value)
def test_traversal_is_block_verification_on_a_chain(draw: Draw, pair: Pair) -> None:
    """On every single draft, what is emitted has the same distribution."""
    for parents in CHAINS[1:]:
        check_same_distribution(Case(Traversal(), draw, parents), BlockRule(), pair)


@every_pair
@pytest.mark.parametrize(
    "other", [KSeq(), TopPlusOne(), Lenient(1.0)], ids=lambda o: type(o).__name__
)
def test_other_rules_are_rejection_on_a_chain(other: VerificationRule, pair: Pair) -> None:
    """With one candidate at each node there is nothing for them to do in another way."""
    check_same_distribution(Case(Rejection(), Draw.SINGLE, chain(2)), other, pair)


@pytest.mark.parametrize("draw", [Draw.IID, Draw.WITHOUT_REPLACEMENT], ids=lambda draw: draw.value)
@pytest.mark.parametrize("rule", [Rejection(), Traversal()], ids=lambda rule: type(rule).__name__)
@some_pairs
def test_one_draw_is_one_draw_whatever_it_is_called(
    rule: VerificationRule, draw: Draw, pair: Pair
) -> None:
    """A tree of widths 1 is a sampled chain."""
    named = accepted_texts(Case(rule, draw, chain(2)), pair)
    assert named == pytest.approx(
        accepted_texts(Case(rule, Draw.SINGLE, chain(2)), pair), abs=EXACT
    )


@every_pair
def test_point_masses_may_be_asked_one_after_another_or_matched(pair: Pair) -> None:
    """Drawing from p and following it is sequential rejection of point masses."""
    for parents in (THREE, FORKED):
        check_same_distribution(Case(Match(), Draw.DETERMINISTIC, parents), Lenient(1.0), pair)
        check_same_distribution(Case(Match(), Draw.DETERMINISTIC, parents), Rejection(), pair)


# --- several candidates at one node -------------------------------------------------------------

K_SEQ = KSeq()
WIDE = [random_pair(40 + seed, 1.0, 0.3, vocab_size=4) for seed in range(2)]
wide_pairs = pytest.mark.parametrize("pair", [*WIDE, *HAND], ids=names([*WIDE, *HAND]))


@cache
def _share_of_first(rule: VerificationRule, parents: tuple[int, ...], pair: Pair) -> float:
    """Return P(A >= 1) of i.i.d. draws."""
    return sum(accepted_texts(Case(rule, Draw.IID, parents), pair).values())


def _rows(pair: Pair) -> tuple[Tensor, Tensor]:
    return pair.p(()), pair.q(())


@wide_pairs
@several_draws
def test_recursive_rejection_accepts_what_its_residuals_leave(
    parents: tuple[int, ...], pair: Pair
) -> None:
    """1 - prod_j (1 - sum min(r_j, q)), where r_j is what j refusals leave of p."""
    (rest, q), refused = _rows(pair), 1.0
    for _ in parents[1:]:
        overlap = float(rest.minimum(q).sum())
        refused *= 1 - overlap
        left = (rest - q).clamp(min=0)
        rest = left / left.sum() if overlap < 1 - EXACT else rest
    check_first_acceptance(Case(Rejection(), Draw.IID, parents), pair, 1 - refused)


@wide_pairs
@several_draws
def test_match_accepts_a_draw_that_any_candidate_bears(
    parents: tuple[int, ...], pair: Pair
) -> None:
    """sum_v p (1 - (1 - q)^k)."""
    p, q = _rows(pair)
    expected = float((p * (1 - (1 - q) ** (len(parents) - 1))).sum())
    check_first_acceptance(Case(Match(), Draw.IID, parents), pair, expected)


@wide_pairs
@several_draws
def test_k_seq_accepts_nearly_what_it_promises(parents: tuple[int, ...], pair: Pair) -> None:
    """At least 1 - (1 - 1/k)^k of the optimum (Sun et al. 2023, theorem 3), and never more."""
    p, q = _rows(pair)
    k = len(parents) - 1
    found, best = _share_of_first(K_SEQ, parents, pair), best_transport(p, q, k)
    assert (1 - (1 - 1 / k) ** k) * best - EXACT <= found <= best + EXACT


@wide_pairs
@pytest.mark.parametrize("parents", [TWO, THREE], ids=str)
def test_k_seq_asks_with_the_smallest_rho(parents: tuple[int, ...], pair: Pair) -> None:
    """1 - (1 - beta)^k at the smallest lossless rho, searched for here on a fine grid."""
    p, q = _rows(pair)
    k = len(parents) - 1
    rho = torch.linspace(1, k, 20001, dtype=torch.float64)[:, None]
    beta = (p / rho).minimum(q).sum(dim=-1)
    some = 1 - (1 - beta) ** k
    smallest = int((some <= rho.squeeze() * beta + EXACT).nonzero()[0])
    assert _share_of_first(K_SEQ, parents, pair) == pytest.approx(float(some[smallest]), abs=1e-4)


DRAWN_LAST = [  # q has a token left to draw when the fixed ones are taken
    (parents, pair)
    for parents in (TWO, THREE)
    for pair in (*WIDE, *HAND)
    if int((pair.q(()) > 0).sum()) >= len(parents) - 1
]


@pytest.mark.parametrize(
    ("parents", "pair"), DRAWN_LAST, ids=[f"{len(shape) - 1}-{pair}" for shape, pair in DRAWN_LAST]
)
def test_top_plus_one_accepts_the_fixed_ones_and_the_overlap(
    parents: tuple[int, ...], pair: Pair
) -> None:
    """p(T) + sum min(p, w); and no rule for these draws accepts more (checked over all sets H)."""
    p, q = _rows(pair)
    ((proposal, _), *_) = drafts(DRAFTERS[Draw.TOP_PLUS_ONE], parents, pair.q)
    fixed = list(proposal.tree.token_ids[1:-1])
    w = q.clone()
    w[fixed] = 0.0
    w /= w.sum()
    expected = float(p[fixed].sum() + p.minimum(w).sum())
    check_first_acceptance(Case(TopPlusOne(), Draw.TOP_PLUS_ONE, parents), pair, expected)
    # H must hold all of T, or else no set of candidates lies within it.
    other = [token for token in range(len(p)) if token not in fixed]
    optimum = best_transport(p[other], w[other], 1) + float(p[fixed].sum())
    assert expected == pytest.approx(min(1.0, optimum), abs=EXACT)


@wide_pairs
@several_draws
@pytest.mark.parametrize(
    "rule", [Rejection(), Match(), Traversal(), K_SEQ, KSeqBlock()], ids=lambda r: type(r).__name__
)
def test_no_rule_accepts_more_than_the_transport_bound(
    rule: VerificationRule, parents: tuple[int, ...], pair: Pair
) -> None:
    """The bound holds for whatever is lossless with i.i.d. draws."""
    assert Draw.IID in rule.lossless_for
    p, q = _rows(pair)
    bound = float(transport_bound(p[None], q[None], len(parents) - 1))
    found = _share_of_first(rule, parents, pair)
    assert found <= bound + EXACT
    if len(parents) == 2 and not isinstance(rule, Match):
        assert found == pytest.approx(bound, abs=EXACT), "one draw: rejection is the optimum"


def test_every_rule_for_independent_draws_is_held_to_the_bound() -> None:
    """A new one must be added to the list above."""
    assert {type(case.rule) for case in CASES if case.draw is Draw.IID} == {
        *(Rejection, Match, Traversal, KSeq, KSeqBlock),
    }
