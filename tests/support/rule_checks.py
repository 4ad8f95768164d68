"""The checks themselves: used by the tests of the rules, and by those that plant bugs in them."""

import random
from collections.abc import Callable
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from specdec.core.protocols import VerificationRule
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.decoding.stopping import Stopping
from specdec.proof.drafting import Drafted, drafts, text_at
from tests.support.harness import Block, block_distribution, completed, decisions, emitted
from tests.support.rule_cases import EXACT, Case, Pair, V
from tests.support.toy import (
    Conditional,
    TextDistribution,
    Tokens,
    text_distribution,
    total_variation,
)

ENDS = [frozenset[int](), frozenset({0}), frozenset({2}), frozenset({0, 2})]


def check_text_distribution(case: Case, pair: Pair) -> None:
    """One round, completed with p, is p's text; and all outcomes have probability 1 together."""
    blocks = block_distribution(case.rule, drafts(case.drafts, case.parents, pair.q), pair.p)
    total = sum(blocks.values())
    assert abs(total - 1) < EXACT, f"{case} {pair}: outcomes add up to {total}"
    distribution = completed(blocks, pair.p, case.length)
    found = total_variation(distribution, text_distribution(pair.p, case.length))
    assert found < EXACT, f"TV {found:.3e}: {case} does not emit p's texts for the pair {pair}"


def check_pruned_distribution(case: Case, pair: Pair, budget: int, ends: frozenset[int]) -> None:
    """A round as the decoder plays it is p's text, cut at an end or at the budget."""
    drafted = [
        Drafted(proposal.pruned(budget - 1, ends), mass)
        for proposal, mass in drafts(case.drafts, case.parents, pair.q)
    ]
    blocks: dict[Block, float] = {}
    for block, mass in block_distribution(case.rule, drafted, pair.p).items():
        text, _ = Stopping(budget, ends).cut((), block.token_ids)
        cut = Block(tuple(text), min(block.num_accepted, len(text)))
        blocks[cut] = blocks.get(cut, 0.0) + mass
    longest = max(len(block.token_ids) for block in blocks)
    assert longest <= budget, f"{longest} tokens emitted with {budget} left"
    distribution = completed(blocks, pair.p, budget, ends)
    found = total_variation(distribution, text_distribution(pair.p, budget, ends))
    assert found < EXACT, f"TV {found:.3e} for {pair}, budget {budget}, ends {set(ends)}"


# --- how much is accepted -----------------------------------------------------------------------


def accepted_texts(case: Case, pair: Pair) -> TextDistribution:
    """Return P(A >= k and the first k tokens are x_1 .. x_k) for every such text."""
    masses: TextDistribution = {}
    drafted = drafts(case.drafts, case.parents, pair.q)
    for block, mass in block_distribution(case.rule, drafted, pair.p).items():
        for depth in range(1, block.num_accepted + 1):
            text = block.token_ids[:depth]
            masses[text] = masses.get(text, 0.0) + mass
    return masses


def check_accepted_texts(
    case: Case, pair: Pair, expected: Callable[[Conditional, Conditional, Tokens], float]
) -> None:
    """Each text is accepted as often as its closed form says."""
    found = accepted_texts(case, pair)
    for depth in range(1, case.length):
        for text in product(range(V), repeat=depth):
            wanted = expected(pair.p, pair.q, text)
            assert abs(found.get(text, 0.0) - wanted) < EXACT, (
                f"{case} {pair}: {text} is accepted with {found.get(text, 0.0)}, not {wanted}"
            )


def by_tokens(p: Conditional, q: Conditional, text: Tokens) -> float:
    """Return prod_i min(p, q)(x_i): what token-level rejection accepts."""
    steps = (p(text[:i]).minimum(q(text[:i]))[token] for i, token in enumerate(text))
    return float(torch.stack(list(steps)).prod())


def by_blocks(p: Conditional, q: Conditional, text: Tokens) -> float:
    """Return min_j q(x_1 .. x_j) p(x_j+1 .. x_k): what block verification accepts."""
    likely, running = 1.0, 1.0  # q(x_1 .. x_i), and the minimum so far
    for i, token in enumerate(text):
        likely *= float(q(text[:i])[token])
        running = min(running * float(p(text[:i])[token]), likely)
    return running


def by_matches(p: Conditional, q: Conditional, text: Tokens) -> float:
    """Return prod_i p(x_i) q(x_i): what the verifier draws and the draft has drawn too."""
    steps = ((p(text[:i]) * q(text[:i]))[token] for i, token in enumerate(text))
    return float(torch.stack(list(steps)).prod())


def check_first_acceptance(case: Case, pair: Pair, expected: float) -> None:
    """P(A >= 1) is what a formula says."""
    found = sum(mass for text, mass in accepted_texts(case, pair).items() if len(text) == 1)
    assert abs(found - expected) < EXACT, f"{case} {pair}: P(A >= 1) = {found}, not {expected}"


def check_same_distribution(case: Case, other: VerificationRule, pair: Pair) -> None:
    """Two rules decide alike on every single draft."""
    for proposal, _ in drafts(case.drafts, case.parents, pair.q):
        distributions = [
            decisions(rule, proposal, pair.p, partial(emitted, proposal))
            for rule in (case.rule, other)
        ]
        for block in distributions[0].keys() | distributions[1].keys():
            ours, theirs = (distribution.get(block, 0.0) for distribution in distributions)
            assert abs(ours - theirs) < EXACT, (
                f"{case} {pair}: {block} of {proposal.tree.token_ids} has {ours}, not {theirs}"
            )


# --- what verdicts report -----------------------------------------------------------------------


class Report(NamedTuple):
    """What a verdict says about acceptance, and what was accepted."""

    num_accepted: int
    expected_accepted: float


def reported(verdict: Verdict) -> Report:
    assert verdict.expected_accepted is not None, "our rules say it"
    return Report(len(verdict.path), verdict.expected_accepted)


def reports(
    case: Case, pair: Pair, budget: int | None = None, ends: frozenset[int] = ENDS[0]
) -> dict[Report, float]:
    """Return the distribution of what verdicts report, on trees cut as the decoder cuts them."""
    distribution: dict[Report, float] = {}
    for proposal, mass in drafts(case.drafts, case.parents, pair.q):
        cut = proposal.pruned((budget or case.length) - 1, ends)
        found = decisions(case.rule, cut, pair.p, reported)
        for report, share in found.items():
            distribution[report] = distribution.get(report, 0.0) + mass * share
    return distribution


def check_expected_accepted(
    case: Case, pair: Pair, budget: int | None = None, ends: frozenset[int] = ENDS[0]
) -> None:
    """`expected_accepted` has the mean of the count, and no larger variance."""
    distribution = reports(case, pair, budget, ends)
    mean = sum(mass * report.num_accepted for report, mass in distribution.items())
    found = sum(mass * report.expected_accepted for report, mass in distribution.items())
    assert abs(found - mean) < EXACT, f"{case} {pair}: {found} is expected, {mean} accepted"
    spread, counted = (
        sum(mass * (value - mean) ** 2 for value, mass in values)
        for values in (
            [(report.expected_accepted, mass) for report, mass in distribution.items()],
            [(report.num_accepted, mass) for report, mass in distribution.items()],
        )
    )
    assert spread <= counted + EXACT, f"{case} {pair}: variance {spread} > {counted} of the count"


def check_overlap_and_bound(case: Case, pair: Pair) -> None:
    """Overlap k is about the node at depth k of the path, if it has candidates; bound: the root."""
    for proposal, _ in drafts(case.drafts, case.parents, pair.q):
        for path, overlap, bound in decisions(
            case.rule, proposal, pair.p, lambda v: (v.path, v.overlap, v.bound)
        ):
            wanted = [
                _overlap_and_bound(proposal, pair, node)
                for node in (0, *path)
                if _num_drawn(proposal, node) > 0
            ]
            assert overlap == pytest.approx([each[0] for each in wanted], abs=EXACT)
            sampled = proposal.draw is not Draw.DETERMINISTIC
            at_root = [each[1] for each in wanted[:1]] * sampled
            assert bound == pytest.approx(at_root, abs=EXACT)


def _num_drawn(proposal: Proposal, node: int) -> int:
    withheld = proposal.withheld and node == proposal.tree.num_draft_tokens
    return len(proposal.tree.children[node]) + withheld


def _overlap_and_bound(proposal: Proposal, pair: Pair, node: int) -> tuple[float, float]:
    tree, p = proposal.tree, pair.p(text_at(proposal.tree, node))
    if proposal.draft_probs is None:
        tokens = sorted({tree.token_ids[child] for child in tree.children[node]})
        return float(p[tokens].sum()), 0.0
    q = proposal.draft_probs[node]
    # What a filter withholds is one more token, which p does not have.
    hole = torch.stack([1 - q.sum(), torch.zeros_like(q[0])])
    whole_p, whole_q = torch.cat([p, hole[1:]]), torch.cat([q, hole[:1].clamp(min=0)])
    bound = best_transport(whole_p, whole_q, _num_drawn(proposal, node))
    return float(p.minimum(q).sum()), bound


def best_transport(p: Tensor, q: Tensor, num_draws: int) -> float:
    """Return 1 + min_H [p(H) - q(H)^k] over ALL sets H of tokens."""
    subsets = [list(h) for n in range(len(p) + 1) for h in combinations(range(len(p)), n)]
    return 1 + min(float(p[h].sum() - q[h].sum() ** num_draws) for h in subsets)


def check_divergence(case: Case, pair: Pair) -> None:
    """`divergence` holds TV and KL(distribution || p) of the token after each node of the path.

    The distribution is that of the emitted text, over the draft's draws or, where it draws nothing,
    given the tree; deeper down, given that the draft tokens so far were accepted.
    """
    masses: dict[Tokens, Tensor] = {}  # the accepted draft tokens -> [V], of the next token
    for proposal, mass in drafts(case.drafts, case.parents, pair.q):
        for block, share in decisions(
            case.rule, proposal, pair.p, partial(emitted, proposal)
        ).items():
            for depth in range(min(block.num_accepted, case.length - 2) + 1):
                row = masses.setdefault(block.token_ids[:depth], torch.zeros(V, dtype=torch.double))
                row[block.token_ids[depth]] += mass * share
    for proposal, _ in drafts(case.drafts, case.parents, pair.q):
        for path, divergence in decisions(
            case.rule, proposal, pair.p, lambda v: (v.path, v.divergence)
        ):
            assert len(divergence) == len(path) + 1, "one entry for each visited node"
            for node, reported in zip((0, *path), divergence, strict=True):
                text = text_at(proposal.tree, node)
                probs, p = masses.get(text, pair.p(text)), pair.p(text)
                probs = probs / probs.sum()
                probs = probs if proposal.tree.children[node] else p
                variation = 0.5 * float((probs - p).abs().sum())
                kl = float((probs * (probs / p).log()).where(probs > 0, 0.0).sum())
                assert reported == pytest.approx((variation, kl), abs=1e-11), (
                    f"{case} {pair}: after {text} it is {probs.tolist()}, and p is {p.tolist()}"
                )


# --- noise --------------------------------------------------------------------------------------


class _Always(random.Random):
    def __init__(self, number: float):
        super().__init__()
        self._number = number

    def random(self) -> float:
        return self._number


class ConstantStream(RandomStream):
    """The product's stream with a generator that always says the same."""

    def __init__(self, number: float):
        super().__init__()
        self._random = _Always(number)


def check_zero_is_never_accepted(stream: RandomStream) -> None:
    """A stream whose noise is 0 still says no to probability 0, and yes to anything more."""
    assert not stream.accept(0.0), "a token that is impossible would be accepted"
    assert stream.accept(1e-300)
