"""Rules that are not lossless: what they report of it is exactly what they do.

The distribution of each emitted token is enumerated, over the draft's draws if it draws, and
compared with the total variation and the KL that verdicts report.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.protocols import VerificationRule
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.decoding.pairing import is_lossless
from specdec.proof.drafting import DRAFTERS, ROOT_TOKEN, Parents, chain, draft_rows, drafts, text_at
from specdec.verification.lenient import Lenient
from specdec.verification.top_k import TopK
from specdec.verification.typical import Typical
from tests.support.harness import bias, decisions, names
from tests.support.marking import thorough
from tests.support.rule_cases import (
    BINARY,
    EXACT,
    FIRST_PAIRS,
    FORKED,
    HAND,
    PAIRS,
    RANDOM,
    THREE,
    UNEVEN,
    Case,
    Match,
    Pair,
    Rejection,
    configured_rules,
)
from tests.support.rule_checks import check_divergence, check_same_distribution
from tests.support.toy import Conditional, Tokens, full_context, memoryless

# Each lossy rule with a mild and a strong setting; a new one needs a line here.
LOSSY: Sequence[VerificationRule] = [
    *(Lenient(0.3), Lenient(0.8)),
    *(Typical(0.09, 0.3), Typical(0.4, 0.9)),
    *(TopK(1), TopK(2)),
]
SHAPES = {Draw.SINGLE: [chain(1), chain(2)], Draw.DETERMINISTIC: [chain(2), THREE, FORKED, UNEVEN]}
CASES = [
    Case(rule, draw, parents)
    for rule in LOSSY
    for draw, shapes in SHAPES.items()
    for parents in shapes
]


def _name(case: Case) -> str:
    settings = ",".join(str(value) for value in vars(case.rule).values())
    return f"{type(case.rule).__name__}({settings})-{case.draw.value}-{len(case.parents) - 1}"


every_case = pytest.mark.parametrize("case", CASES, ids=_name)


def test_every_configured_lossy_rule_is_measured() -> None:
    """A rule that is defined for a draw for which it is not lossless needs a line above."""
    straying = {rule for rule in configured_rules() if rule.defined_for - rule.lossless_for}
    assert straying == {type(rule) for rule in LOSSY}
    for rule in LOSSY:
        assert rule.defined_for - rule.lossless_for == SHAPES.keys(), f"{rule}: enumerate its draws"


@pytest.mark.parametrize("draw", SHAPES, ids=lambda draw: draw.value)
@pytest.mark.parametrize(
    "rule",
    {type(rule): rule for rule in LOSSY}.values(),
    ids=lambda rule: type(rule).__name__,
)
def test_they_are_lossy_indeed_and_must_be_allowed(rule: VerificationRule, draw: Draw) -> None:
    """What is refused without `allow_lossy` strays, for some pair, by far more than rounding."""
    with pytest.raises(UserError, match="allow_lossy"):
        is_lossless(rule, draw, allow_lossy=False)
    assert not is_lossless(rule, draw, allow_lossy=True)
    strays = [bias(Case(rule, draw, chain(1)).play(pair.p, pair.q), pair.p, 2) for pair in RANDOM]
    assert max(strays) > 1e-2


@pytest.mark.parametrize(
    "pair",
    [pair if pair in FIRST_PAIRS else thorough(pair) for pair in PAIRS],
    ids=names(PAIRS),
)
@every_case
def test_the_reported_divergence_is_that_of_the_enumerated_distribution(
    case: Case, pair: Pair
) -> None:
    """TV and KL at each visited node, against the distribution of the token that follows it."""
    check_divergence(case, pair)


@pytest.mark.parametrize("pair", PAIRS, ids=names(PAIRS))
def test_a_lenience_of_one_is_rejection(pair: Pair) -> None:
    """The same decisions on every draft, and no divergence."""
    check_same_distribution(Case(Rejection(), Draw.SINGLE, chain(2)), Lenient(1.0), pair)
    check_same_distribution(Case(Match(), Draw.DETERMINISTIC, FORKED), Lenient(1.0), pair)
    for draw in SHAPES:
        for proposal, _ in drafts(DRAFTERS[draw], chain(2), pair.q):
            for found in decisions(Lenient(1.0), proposal, pair.p, lambda v: v.divergence):
                assert torch.tensor(found).abs().max() < EXACT


# --- what is accepted ---------------------------------------------------------------------------


@pytest.mark.parametrize("draw", SHAPES, ids=lambda draw: draw.value)
@pytest.mark.parametrize(
    "settings",
    [
        [Lenient(value) for value in (1.0, 0.8, 0.5, 0.2, 0.01)],
        [Typical(value, 0.9) for value in (0.9, 0.5, 0.3, 0.1, 0.0)],
        [Typical(0.9, value) for value in (1.0, 0.7, 0.4, 0.1, 0.0)],
        [TopK(value) for value in (1, 2, 3)],
    ],
    ids=["lenience", "epsilon", "delta", "k"],
)
def test_a_laxer_setting_accepts_more(settings: list[VerificationRule], draw: Draw) -> None:
    """E[A] never falls from one setting to the next, and does rise from the first to the last."""
    for pair in (*RANDOM, HAND[7]):
        found = [_mean_accepted(rule, draw, pair) for rule in settings]
        assert all(a <= b + EXACT for a, b in pairwise(found)), (pair, found)
    assert _mean_accepted(settings[0], draw, RANDOM[6]) + 0.1 < _mean_accepted(
        settings[-1], draw, RANDOM[6]
    )


def _mean_accepted(rule: VerificationRule, draw: Draw, pair: Pair) -> float:
    return sum(
        mass * share * num_accepted
        for proposal, mass in drafts(DRAFTERS[draw], chain(2), pair.q)
        for num_accepted, share in decisions(rule, proposal, pair.p, lambda v: len(v.path)).items()
    )


ROW = (0.5, 0.3, 0.15, 0.05, 0.0)
ENTROPY = -sum(value * math.log(value) for value in ROW if value > 0)  # 1.14 nats


def _accepted_tokens(rule: VerificationRule, row: Sequence[float]) -> set[int]:
    """Offer each token alone."""
    p = memoryless(*row)
    return {token for token in range(len(row)) if _decided(rule, p, (token,)).path}


def _decided(
    rule: VerificationRule, p: Conditional, tokens: Tokens, parents: Parents = (-1, 0)
) -> Verdict:
    """Return the verdict on fixed candidates; it may differ in its last token only."""
    proposal = Proposal(CandidateTree((ROOT_TOKEN, *tokens), parents))
    verdicts = list(decisions(rule, proposal, p, lambda v: v))
    assert len({verdict.path for verdict in verdicts}) == 1, "these rules toss no coin to accept"
    return verdicts[0]


@pytest.mark.parametrize(
    ("epsilon", "delta", "accepted"),
    [
        (0.09, 1.0, {0, 1, 2}),  # epsilon decides: 1.0 * exp(-1.14) = 0.32 is more
        (0.3, 1.0, {0}),  # strictly more than epsilon
        (1.0, 1.0, {0}),  # exp(-H) = 0.32 decides
        (1.0, 0.9, {0, 1}),  # 0.288
        (1.0, 0.48, {0, 1}),  # 0.153 is more than 0.15
        (1.0, 0.45, {0, 1, 2}),  # 0.144 is less
        (1.0, 0.1, {0, 1, 2, 3}),
        (0.0, 1.0, {0, 1, 2, 3}),  # what is impossible stays so
    ],
)
def test_typical_acceptance_is_its_criterion(
    epsilon: float, delta: float, accepted: set[int]
) -> None:
    """p(x) > min(epsilon, delta exp(-H)), worked out by hand for one row."""
    assert 1.13 < ENTROPY < 1.15
    by_formula = {x for x, p in enumerate(ROW) if p > min(epsilon, delta * math.exp(-ENTROPY))}
    assert by_formula == accepted, "the numbers by hand are wrong"
    assert _accepted_tokens(Typical(epsilon, delta), ROW) == accepted


@pytest.mark.parametrize(
    ("k", "accepted"), [(1, {0}), (2, {0, 1}), (4, {0, 1, 2, 3}), (9, {0, 1, 2, 3})]
)
def test_top_k_acceptance_is_its_criterion(k: int, accepted: set[int]) -> None:
    """The k likeliest, never what is impossible, however large k is."""
    assert _accepted_tokens(TopK(k), ROW) == accepted


def test_ties_with_the_kth_are_accepted() -> None:
    """As `sampling.top_k` keeps them."""
    assert _accepted_tokens(TopK(2), (0.4, 0.25, 0.25, 0.1)) == {0, 1, 2}


@pytest.mark.parametrize("parents", [BINARY, UNEVEN], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_longest_acceptable_path_wins(parents: Parents, seed: int) -> None:
    """Among equally long ones the likeliest: against a search through all paths of the tree."""
    p, rule = full_context(seed, 1.0), TopK(2)
    tree = drafts(DRAFTERS[Draw.DETERMINISTIC], parents, full_context(seed + 50))[0].proposal.tree
    rows = draft_rows(tree, p)
    best = (0, 1.0, ())
    for node in range(1, len(parents)):
        path = _path_to(parents, node)
        odds = [(rows[parents[n]], tree.token_ids[n]) for n in path]
        if all(row[token] >= row.topk(2).values[-1] for row, token in odds):
            joint = math.prod(float(row[token]) for row, token in odds)
            best = max(best, (len(path), joint, path))
    assert len(text_at(tree, len(parents) - 1)) == tree.depths[-1]
    assert _decided(rule, p, tree.token_ids[1:], parents).path == best[2]


def _path_to(parents: Parents, node: int) -> tuple[int, ...]:
    return () if node == 0 else (*_path_to(parents, parents[node]), node)
