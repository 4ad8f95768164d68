"""E[A], its bound, divergence and judges: hand cases, what must add up, and nothing at all."""

import json
import math
import random

import pytest

from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace
from specdec.metrics import (
    Estimate,
    Tally,
    block_efficiency,
    efficiency_contrast,
    expected_accepted,
    judged,
    kl,
    num_accepted,
    overlap,
    summarize,
    total_variation,
    transport_bound,
)
from tests.support.metric_traces import example, make_step, make_trace, random_traces

NOTHING = Estimate(None, None, None, 0)
PLAIN = make_step(0, 0, expected=0.0)


def by_hand() -> list[Trace]:
    """Two prompts, three steps of a lossy rule: 3 nodes visited and bounded, 5 tokens emitted."""
    first = make_step(
        1, 2, expected=1.5, bound=(0.75, 0.5), overlap=(0.5, 0.5),
        divergence=((0.25, 0.5), (0.0, 0.0)), judged={"other": 1.75, "own": 1.5},
    )  # fmt: skip
    second = make_step(
        0, 2, expected=0.25, bound=(0.25,), overlap=(0.25,), divergence=((0.125, 0.25),),
        judged={"other": 0.0, "own": 0.25},
    )  # fmt: skip
    third = make_step(
        1, 1, expected=0.5, divergence=((0.0, 0.0), (0.0, 0.0)), judged={"other": 1, "own": 0.5}
    )
    return [make_trace("a", first, second), make_trace("b", third)]


def test_example_by_hand():
    traces = by_hand()
    assert expected_accepted(Tally.of(traces)).value == 2.25 / 3
    tally = Tally.of(traces)
    bound, variation, divergence = transport_bound(tally), total_variation(tally), kl(tally)
    assert bound is not None
    assert (bound.value, bound.n) == (1.5 / 3, 1), "only one prompt has bounded nodes"
    assert variation is not None
    assert variation.value == 0.375 / 5
    assert divergence is not None
    assert divergence.value == 0.75 / 5
    found = judged(Tally.of(traces))
    assert found["other"]["expected_accepted"].value == 2.75 / 3
    assert found["other"]["difference"].value == pytest.approx(0.5 / 3, abs=1e-12)
    assert found["own"]["difference"] == Estimate(0.0, None, None, 2), "the rule against itself"


def test_divergence_counts_every_emitted_token():
    """The denominator is the tokens of the text: a lossy rule says something about each."""
    traces = by_hand()
    num_pairs = sum(len(step.divergence) for trace in traces for step in trace.steps)
    assert num_pairs == sum(step.emitted for trace in traces for step in trace.steps)


def test_a_rule_that_does_not_say_what_it_expects_has_no_number():
    """0 would be a claim, and a difference of it to a judge's a false one."""
    silent = [make_trace("a", make_step(1, 2, judged={"other": 1.75}))]
    found = judged(Tally.of(silent))["other"]
    assert expected_accepted(Tally.of(silent)) == NOTHING
    assert found["expected_accepted"] == Estimate(1.75, None, None, 1)
    assert found["difference"] == NOTHING
    summary = summarize(Tally.of(silent))
    assert summary["expected_accepted"]["value"] is None
    assert summary["judged"]["other"]["difference"]["value"] is None


def test_a_judge_that_does_not_say_what_it_expects_has_no_number():
    steps = [make_step(1, 2, expected=1.5, judged={"silent": None, "other": 1.0})] * 2
    found = judged(Tally.of([make_trace("a", *steps)]))
    assert found["silent"] == {"expected_accepted": NOTHING, "difference": NOTHING}
    assert found["other"]["difference"].value == -0.5


def test_what_some_steps_know_is_of_those_steps():
    """A difference is of the steps of which both rules know it."""
    steps = [
        make_step(1, 2, expected=1.5, judged={"other": 1.0}),
        make_step(1, 2, judged={"other": 3.0}),
        make_step(1, 2, expected=0.5, judged={"other": None}),
    ]
    tally = Tally.of([make_trace("a", *steps)])
    assert expected_accepted(tally).value == 1.0
    found = judged(tally)["other"]
    assert (found["expected_accepted"].value, found["difference"].value) == (2.0, -0.5)
    rows = json.loads(json.dumps(tally.to_rows()))
    assert judged(Tally.from_rows(rows)) == judged(tally)


def test_one_prompt_has_no_interval():
    traces = by_hand()[:1]
    assert expected_accepted(Tally.of(traces)) == Estimate(1.75 / 2, None, None, 1)
    assert judged(Tally.of(traces))["other"]["difference"] == Estimate(0.0, None, None, 1)
    assert transport_bound(Tally.of(traces)) == Estimate(0.5, None, None, 1)


@pytest.mark.parametrize("traces", [[], [make_trace("a")]], ids=["no_prompt", "no_step"])
def test_of_nothing_nothing_is_claimed(traces: list[Trace]):
    assert expected_accepted(Tally.of(traces)).value is None
    tally = Tally.of(traces)
    assert transport_bound(tally) is total_variation(tally) is kl(tally) is None
    assert judged(Tally.of(traces)) == {}


def test_lossless_rules_have_no_divergence_and_point_masses_no_bound():
    """0 would claim that something was measured."""
    traces = [make_trace("a", make_step(1, 2, overlap=(0.5,)), PLAIN)]
    tally = Tally.of(traces)
    assert transport_bound(tally) is total_variation(tally) is kl(tally) is None
    assert overlap(Tally.of(traces)).value == 0.5
    assert expected_accepted(Tally.of([make_trace("a", PLAIN)])) == Estimate(0.0, None, None, 1)
    assert overlap(Tally.of([make_trace("a", PLAIN)])) == NOTHING


def test_of_one_draw_the_bound_is_the_overlap():
    steps = [make_step(0, 1, overlap=(share,), bound=(share,)) for share in (0.25, 0.75)]
    tally = Tally.of([make_trace("a", *steps)])
    assert transport_bound(tally) == overlap(tally)


def test_an_arm_against_itself_differs_by_nothing():
    traces = random_traces(6, 10, 3, seed=2)
    contrast = efficiency_contrast(Tally.of(traces), Tally.of(traces))
    assert contrast.difference() == Estimate(0.0, 0.0, 0.0, 6)
    ratio = contrast.ratio()
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_difference_and_ratio_are_of_the_two_efficiencies(seed: int):
    """And they turn around with the arms; the interval holds the value."""
    one, other = (random_traces(9, 12, 4, seed + arm) for arm in (0, 100))
    first, second = block_efficiency(Tally.of(one)).value, block_efficiency(Tally.of(other)).value
    assert first is not None
    assert second is not None
    arms = Tally.of(one), Tally.of(other)
    contrast = efficiency_contrast(*arms)
    difference, ratio = contrast.difference(), contrast.ratio()
    assert difference.value == pytest.approx(first - second, abs=1e-12)
    assert ratio.value == pytest.approx(first / second, abs=1e-12)
    turned = efficiency_contrast(*arms[::-1]).difference()
    assert turned.value == -(difference.value or math.nan)
    for estimate in (difference, ratio):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= (estimate.value or math.nan) <= estimate.high


def test_other_prompts_are_not_compared():
    with pytest.raises(AssertionError, match="same prompts"):
        efficiency_contrast(Tally.of(example()), Tally.of(example()[:1]))


def test_averaging_the_noise_out_keeps_the_mean_and_narrows_the_interval():
    """Chains of 4 whose tokens pass with a probability that the rule knows.

    3000 steps with var(A) < 2.5: the standard error of the difference of the two means is below
    sqrt(2.5 / 3000) = 0.029, and 0.15 raises a false alarm with probability below 1e-6. The
    variance of E[A] over steps is well below that of A, so its interval must be narrower.
    """
    rng = random.Random(3)
    traces = [
        make_trace(f"prompt-{number}", *(_played(rng) for _ in range(100))) for number in range(30)
    ]
    counted, expected = num_accepted(Tally.of(traces)), expected_accepted(Tally.of(traces))
    assert expected.value == pytest.approx(counted.value, abs=0.15)
    assert _width(expected) < 0.7 * _width(counted)


def _played(rng: random.Random) -> Step:
    passing = [rng.uniform(0.6, 0.8) for _ in range(4)]
    accepted = next((depth for depth in range(4) if rng.random() > passing[depth]), 4)
    expected = sum(math.prod(passing[: depth + 1]) for depth in range(4))
    return make_step(accepted, 4, expected=expected)


def _width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_traces_keep_what_judges_said():
    ended = make_step(1, 2, Outcome.ENDED, judged={"block": 1.25})
    trace = make_trace("a", ended)
    assert Trace.from_row(trace.to_row()) == trace
    assert trace.to_row()["steps"][0]["judged"] == {"block": 1.25}
