import math
import random

import pytest

from specdec.core.outcome import Outcome
from specdec.core.trace import Trace
from specdec.metrics import (
    Estimate,
    Tally,
    acceptance_at_depth,
    acceptance_rate,
    block_efficiency,
    num_accepted,
    overlap,
    reached_depth,
)
from tests.support.metric_traces import example, make_step, make_trace, random_traces


def values(estimates: dict[int, Estimate]) -> dict[int, float | None]:
    return {depth: estimate.value for depth, estimate in estimates.items()}


def defined(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.value is not None
    return estimate.value


def test_example_by_hand():
    traces = example()
    assert block_efficiency(Tally.of(traces)).value == 11 / 5
    assert num_accepted(Tally.of(traces)).value == 7 / 5
    assert defined(acceptance_rate(Tally.of(traces))) == 7 / 15
    assert values(reached_depth(Tally.of(traces))) == {1: 4 / 5, 2: 2 / 5, 3: 1 / 5}
    assert {estimate.n for estimate in reached_depth(Tally.of(traces)).values()} == {2}


def test_the_end_of_a_text_is_censored_and_not_a_rejection():
    # The last step was accepted at depth 1, where its text ended: depth 2 was never tested.
    assert values(acceptance_at_depth(Tally.of(example()))) == {1: 4 / 5, 2: 2 / 3, 3: 1 / 2}
    rejected = [example()[0], make_trace("b", make_step(2, 3), make_step(1, 3))]
    assert values(acceptance_at_depth(Tally.of(rejected))) == {1: 4 / 5, 2: 2 / 4, 3: 1 / 2}


def test_a_text_that_ends_at_the_deepest_draft_token():
    traces = [make_trace("a", make_step(2, 2, Outcome.ENDED))]
    assert values(acceptance_at_depth(Tally.of(traces))) == {1: 1.0, 2: 1.0}
    assert block_efficiency(Tally.of(traces)).value == 2.0


def test_short_drafts_are_not_at_risk_below_their_depth():
    # A = 1 of 1, 2 of 3, 0 of 0: one step is at risk at depths 2 and 3, none at depth 4.
    traces = [make_trace("a", make_step(1, 1), make_step(2, 3), make_step(0, 0))]
    assert values(acceptance_at_depth(Tally.of(traces))) == {1: 1.0, 2: 1.0, 3: 0.0}
    assert values(reached_depth(Tally.of(traces))) == {1: 2 / 3, 2: 1 / 3, 3: 0.0}


def test_depth_that_nobody_reached_has_no_acceptance():
    traces = [make_trace("a", make_step(0, 3))]
    assert values(acceptance_at_depth(Tally.of(traces))) == {1: 0.0, 2: None, 3: None}


def test_a_leaf_above_the_deepest_candidate_is_a_miss_of_the_tree():
    # Accepted to a leaf at depth 1 while the tree had other candidates at depth 2.
    traces = [make_trace("a", make_step(1, 2, Outcome.BONUS, drafted=5))]
    assert values(acceptance_at_depth(Tally.of(traces))) == {1: 1.0, 2: 0.0}


def test_acceptance_rate_is_for_chains_only():
    chain, tree = make_step(1, 2), make_step(1, 2, drafted=6)
    assert acceptance_rate(Tally.of([make_trace("a", chain, tree)])) is None
    assert acceptance_rate(Tally.of([make_trace("a", chain)])) == Estimate(0.5, None, None, 1)
    assert acceptance_rate(Tally.of([make_trace("a", make_step(0, 0))])) is None


def test_without_a_draft_every_step_emits_one_token():
    traces = [make_trace(name, make_step(0, 0), make_step(0, 0)) for name in "abcdef"]
    assert block_efficiency(Tally.of(traces)) == Estimate(1.0, 1.0, 1.0, 6)
    assert num_accepted(Tally.of(traces)) == Estimate(0.0, 0.0, 0.0, 6)
    assert acceptance_at_depth(Tally.of(traces)) == reached_depth(Tally.of(traces)) == {}
    assert overlap(Tally.of(traces)) == Estimate(None, None, None, 0)


def test_overlap_averages_over_nodes():
    steps = (make_step(1, 2, overlap=(0.5, 0.25)), make_step(0, 2, overlap=(1.0,)), make_step(0, 0))
    assert overlap(Tally.of([make_trace("a", *steps)])).value == 1.75 / 3


def test_turns_of_a_prompt_are_one_cluster():
    once = random_traces(20, 10, 3, seed=0)
    again = [make_trace(trace.prompt_id, *trace.steps, turn=1) for trace in once]
    for metric in (block_efficiency, num_accepted):
        assert metric(Tally.of([*once, *again])) == metric(Tally.of(once))
    assert acceptance_at_depth(Tally.of([*once, *again])) == acceptance_at_depth(Tally.of(once))


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_conservation(seed: int, ended: bool):
    traces = random_traces(7, 20, 4, seed, ended)
    num_steps = sum(len(trace.steps) for trace in traces)
    num_tokens = sum(len(trace.output_ids) for trace in traces)
    assert sum(step.emitted for trace in traces for step in trace.steps) == num_tokens
    tau = defined(block_efficiency(Tally.of(traces)))
    assert tau * num_steps == pytest.approx(num_tokens, abs=1e-9)
    # Every step adds one token of the verifier's, but for those that ended a text.
    num_ended = sum(map(count_ended, traces))
    assert num_ended == (7 if ended else 0)
    one_more = defined(num_accepted(Tally.of(traces))) + 1 - num_ended / num_steps
    assert defined(block_efficiency(Tally.of(traces))) == pytest.approx(one_more, abs=1e-12)
    # E[A] = sum_d P(A >= d).
    reached = [defined(estimate) for estimate in reached_depth(Tally.of(traces)).values()]
    assert defined(num_accepted(Tally.of(traces))) == pytest.approx(math.fsum(reached), abs=1e-12)


def count_ended(trace: Trace) -> int:
    return sum(step.outcome is Outcome.ENDED for step in trace.steps)


def test_without_censoring_conditional_acceptances_multiply_to_the_unconditional():
    traces = random_traces(7, 20, 4, seed=11)
    reached, product = reached_depth(Tally.of(traces)), 1.0
    for depth, estimate in acceptance_at_depth(Tally.of(traces)).items():
        product *= defined(estimate)
        assert product == pytest.approx(defined(reached[depth]), abs=1e-12)
    censored = random_traces(7, 20, 4, seed=11, ended=True)
    conditional = acceptance_at_depth(Tally.of(censored)).values()
    assert math.prod(map(defined, conditional)) > defined(reached_depth(Tally.of(censored))[4])


def test_censored_estimate_is_unbiased_where_the_uncensored_one_is_not():
    """Draw A with P(A >= d | A >= d-1) = 0.8 and end a text with probability 0.3 at every token.

    40000 steps: the standard error at depth 4 (about 40000 * 0.56**3 = 7000 steps at risk) is
    0.005, so that the bound of 0.025 raises a false alarm with probability below 1e-6.
    """
    rng = random.Random(5)
    steps = []
    for _ in range(40_000):
        accepted, ended = 0, False
        while accepted < 4 and not ended and rng.random() < 0.8:
            accepted, ended = accepted + 1, rng.random() < 0.3
        steps.append(make_step(accepted, 4, Outcome.ENDED if ended else None))
    traces = [make_trace("a", *steps)]
    assert defined(acceptance_at_depth(Tally.of(traces))[4]) == pytest.approx(0.8, abs=0.025)
    reached = reached_depth(Tally.of(traces))
    assert defined(reached[4]) / defined(reached[3]) == pytest.approx(0.56, abs=0.025)
