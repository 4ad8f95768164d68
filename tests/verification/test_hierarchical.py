"""Hierarchical and greedy block verification, by their papers' definitions: neither is a rule here.

Hierarchical speculative decoding with capped branch resampling (Zhou et al. 2026, HSD) turns out
to be block verification, outcome by outcome. Without the cap it is greedy block verification (Sun
et al. 2025, appendix), which accepts more in a step and leaves a debt to the next ones: a step of
it, completed with p, is not p's text.
"""

import pytest
from torch import Tensor

from specdec.core.outcome import Outcome
from specdec.core.randomness import Stream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.proof.drafting import chain
from tests.support.harness import bias, names
from tests.support.rule_cases import HAND, PAIRS, RANDOM, BlockRule, Case, Pair
from tests.support.rule_checks import (
    accepted_texts,
    check_same_distribution,
    check_text_distribution,
)


class Hierarchical:
    """HSD, algorithm 2; `capped` as in its definition 5.

    r(x_1 .. x_t) = p / q of a whole beginning. The capped one counts from the beginning with the
    largest r above 1. A beginning is accepted with the ratio of what its branches lack to what they
    have too much (its equation 19), and the next token makes up for what they lack (equation 20).
    """

    lossless_for = frozenset({Draw.SINGLE})
    defined_for = lossless_for
    needs_q = True

    def __init__(self, capped: bool):
        self._capped = capped

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide from the end of a chain backwards."""
        tree, q = proposal.tree, proposal.draft_probs
        tokens = tree.token_ids[1:]
        ratios = [1.0]
        for t, token in enumerate(tokens):
            assert q is not None
            ratios.append(ratios[-1] * float(verifier_probs[t][token] / q[t][token]))
        for t in range(len(tokens), -1, -1):
            if t == len(tokens):
                holds, weights = self._ratio(ratios, t), verifier_probs[t]
            else:
                assert q is not None
                # r* of the branches behind x_1 .. x_t, times q of them: without q(x_1 .. x_t).
                over = self._before(ratios, t) * verifier_probs[t] - q[t]
                weights, excess = over.clamp(min=0), float((-over).clamp(min=0).sum())
                lacking = float(weights.sum())
                holds = lacking / excess if excess > 0 else 1.0
                weights = weights if lacking > 0 else verifier_probs[t]
            if t == 0 or stream.accept(min(1.0, holds)):
                outcome = Outcome.BONUS if t == len(tokens) else Outcome.RECOVERED
                return Verdict(tuple(range(1, t + 1)), stream.choose(weights), outcome)
        raise AssertionError("the root is always accepted")

    def _ratio(self, ratios: list[float], t: int) -> float:
        """Return r*(x_1 .. x_t)."""
        largest = max(ratios[:t], default=1.0) if self._capped else 1.0
        return ratios[t] / max(1.0, largest)

    def _before(self, ratios: list[float], t: int) -> float:
        """Return r*(x_1 .. x_t y) without the ratio of y."""
        if self._capped:
            return ratios[t] / max(1.0, *ratios[: t + 1])
        return min(1.0, ratios[t])


@pytest.mark.parametrize("pair", PAIRS, ids=names(PAIRS))
def test_hierarchical_verification_is_block_verification(pair: Pair) -> None:
    """On every single draft, what is emitted has the same distribution."""
    for gamma in (1, 2, 3):
        case = Case(Hierarchical(capped=True), Draw.SINGLE, chain(gamma))
        check_same_distribution(case, BlockRule(), pair)


GREEDY = Case(Hierarchical(capped=False), Draw.SINGLE, chain(2))
BLOCK = Case(BlockRule(), Draw.SINGLE, chain(2))


@pytest.mark.parametrize("pair", [RANDOM[3], RANDOM[4], HAND[7]], ids=str)
def test_without_the_cap_more_is_accepted_and_a_step_is_not_lossless(pair: Pair) -> None:
    """So a rule that decides on one step alone cannot be that: the next target is another."""
    more = sum(accepted_texts(GREEDY, pair).values()) - sum(accepted_texts(BLOCK, pair).values())
    off = bias(GREEDY.play(pair.p, pair.q), pair.p, 3)
    assert (more, off) > (0.01, 0.01)
    with pytest.raises(AssertionError, match="TV"):
        check_text_distribution(GREEDY, pair)


def test_the_counterexample_of_the_documentation() -> None:
    """docs/trees-and-rules.md states these numbers."""
    pair = RANDOM[4]
    accepted = (sum(accepted_texts(case, pair).values()) for case in (BLOCK, GREEDY))
    assert [f"{each:.3f}" for each in accepted] == ["1.102", "1.163"]
    assert f"{bias(GREEDY.play(pair.p, pair.q), pair.p, 3):.3f}" == "0.060"
