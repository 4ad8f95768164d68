import random
from dataclasses import replace

import pytest

from specdec.core.trace import Trace
from specdec.metrics import (
    Estimate,
    Tally,
    block_efficiency,
    cost_ratio,
    incomparable,
    prefill_seconds,
    speedup,
    speedup_contrast,
    step_cost,
    time_shares,
    tokens_per_second,
)
from specdec.metrics.speed import NO_CLOCK, TOO_CHEAP, eaten, reread_share
from tests.support.metric_traces import clocked, make_step, make_trace, paced, random_traces


def test_speed_by_hand():
    # 3 + 1 tokens in (0.1 + 0.3 + 0.1) + (0.1 + 0.4 + 0.0) seconds, and 2 tokens in 1 second.
    traces = [
        make_trace(
            "a",
            make_step(2, 2, seconds=(0.1, 0.3, 0.1)),
            make_step(0, 2, seconds=(0.1, 0.4, 0.0)),
            prefill=5.0,
        ),
        make_trace("b", make_step(1, 2, seconds=(0.2, 0.8, 0.0)), prefill=7.0),
    ]
    assert tokens_per_second(Tally.of(traces)).value == pytest.approx(3.0)
    assert prefill_seconds(Tally.of(traces)).value == 6.0
    shares = {name: share.value for name, share in time_shares(Tally.of(traces)).items()}
    assert shares == pytest.approx({"propose": 0.2, "verify": 0.75, "other": 0.05})


def test_shares_add_up_to_one():
    shares = time_shares(Tally.of(random_traces(9, 5, 3, seed=0))).values()
    assert sum(share.value or 0.0 for share in shares) == pytest.approx(1.0)


def test_prefill_is_a_mean_over_turns():
    turns = [make_trace("a", turn=0, prefill=1.0), make_trace("a", turn=1, prefill=2.0)]
    assert prefill_seconds(Tally.of(turns)) == Estimate(1.5, None, None, 1)


def test_speedup_by_hand():
    # 2 tokens a second against 1 token a second; the texts need not be equally long.
    fast = [make_trace(name, make_step(1, 1, seconds=(0.5, 0.5, 0.0))) for name in "abcdef"]
    slow = [make_trace(name, *[make_step(0, 0, seconds=(0.0, 1.0, 0.0))] * 3) for name in "abcdef"]
    assert speedup(clocked(fast, slow)) == Estimate(2.0, 2.0, 2.0, 6)
    assert step_cost(clocked(fast, slow)) == Estimate(1.0, 1.0, 1.0, 6)
    assert cost_ratio(clocked(fast, slow)) == Estimate(0.5, 0.5, 0.5, 6)


def test_what_has_no_clock_has_no_speedup_and_says_why():
    tally = Tally.of(random_traces(9, 5, 3, seed=0))
    assert speedup(tally) == Estimate(None, None, None, 0, NO_CLOCK)
    assert step_cost(tally) == cost_ratio(tally) == speedup(tally)
    assert tokens_per_second(tally).value is not None
    assert speedup_contrast(tally, tally) is None


def test_an_arm_is_exactly_as_fast_as_itself():
    traces = [
        make_trace(f"p{number}", *[make_step(0, 0, seconds=(0.0, 0.1 * number, 0.3))] * 9)
        for number in range(23)
    ]
    assert speedup(clocked(traces, traces)) == Estimate(1.0, 1.0, 1.0, 23)


def test_speedup_is_narrower_than_the_speed_it_is_made_of():
    """Prompts of unlike length of context are slow for both kinds of steps."""
    rng = random.Random(2)
    own: list[Trace] = []
    plain: list[Trace] = []
    for number in range(40):
        slow = rng.uniform(1, 10)
        name, seconds = f"p{number}", (0.0, slow, 0.0)
        own.append(make_trace(name, *[make_step(1, 2, seconds=(slow, slow, 0.0))] * 9))
        plain.append(make_trace(name, *[make_step(0, 0, seconds=seconds)] * 9))
    tally = clocked(own, plain)
    assert relative_width(speedup(tally)) < 0.1 * relative_width(tokens_per_second(tally))


def relative_width(estimate: Estimate) -> float:
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return (estimate.high - estimate.low) / estimate.value


def test_a_machine_that_slows_down_in_the_middle_changes_nothing():
    """Steps and clock of the second half take five times as long; speed falls, speedup does not."""

    def traces(seconds: float, accepted: int, depth: int) -> list[Trace]:
        made = [make_step(accepted, depth, seconds=(0.0, seconds * pace, 0.0)) for pace in (1, 5)]
        return [make_trace(f"p{n}", *[made[n >= 6]] * 4) for n in range(12)]

    tally = clocked(traces(1.5, 2, 2), traces(1.0, 0, 0))
    faster = speedup(tally)
    assert [faster.value, faster.low, faster.high] == pytest.approx([2.0, 2.0, 2.0])
    assert relative_width(tokens_per_second(tally)) > 0.5


def test_only_texts_with_a_clock_say_what_a_step_costs():
    """The clock has seen every other prompt, and these cost 2 plain steps; tau is of all texts."""
    own = [
        make_trace(f"p{n}", *[make_step(2 * (n % 2), 2, seconds=(0.0, 2.0 + 7 * (n % 2), 0.0))] * 3)
        for n in range(14)
    ]
    plain = [make_trace(f"p{n}", make_step(0, 0, seconds=(0.0, 1.0, 0.0))) for n in range(0, 14, 2)]
    tally = clocked(own, plain)
    assert step_cost(tally).value == pytest.approx(2.0)
    assert (speedup(tally).value, speedup(tally).n) == (pytest.approx(1.0), 7)


@pytest.mark.parametrize("num_prompts", [1, 3, 6, 20, 100])
def test_speedups_above_tau_are_no_numbers(num_prompts: int):
    for seed in range(20):
        tally = paced(0.5, num_prompts, noise=0.1, seed=seed)
        for metric in (speedup, step_cost, cost_ratio):
            assert metric(tally) == Estimate(None, None, None, 0, TOO_CHEAP)


@pytest.mark.parametrize(
    "num_prompts", [1, 3, 6, 20, pytest.param(100, marks=pytest.mark.thorough)]
)
def test_honest_steps_that_cost_no_more_than_plain_ones_keep_their_number(num_prompts: int):
    """Noise of 10 % in every step; the seeds are fixed, so no machine can raise a false alarm."""
    tallies = [paced(1.0, num_prompts, noise=0.1, seed=seed) for seed in range(200)]
    assert [incomparable(tally) for tally in tallies] == [None] * 200


def test_speedup_is_at_most_tau_wherever_it_is_a_number():
    for cost in (0.3, 0.6, 0.9, 0.96, 1.0, 1.5):
        tally = paced(cost, 30, noise=0.05, seed=3)
        faster, tau = speedup(tally), block_efficiency(tally)
        if faster.value is None:
            assert faster.reason == TOO_CHEAP
        else:
            assert tau.value is not None
            assert faster.low is not None
            assert faster.low <= tau.value / 0.95


def test_speeds_of_arms_are_compared_by_their_own_clocks():
    """The second arm ran on a machine of another hour, three times slower."""
    names = [f"p{n}" for n in range(9)]

    def arm(seconds: float, pace: float) -> Tally:
        own = [
            make_trace(n, *[make_step(2, 2, seconds=(0.0, seconds * pace, 0.0))] * 4) for n in names
        ]
        return clocked(
            own, [make_trace(n, make_step(0, 0, seconds=(0.0, pace, 0.0))) for n in names]
        )

    contrast = speedup_contrast(arm(2.0, 1.0), arm(1.5, 3.0))
    assert contrast is not None
    assert contrast.difference().value == pytest.approx(1.5 - 2.0)
    same = speedup_contrast(arm(2.0, 1.0), arm(2.0, 3.0))
    assert same is not None
    assert same.p_value == 1.0


def test_what_waited_for_the_clock_is_no_part_of_the_arm():
    traces = random_traces(9, 6, 3, seed=4)
    plain = [make_trace(f"prompt-{n}", make_step(0, 0, seconds=(0, 7.0, 0))) for n in range(9)]
    without, with_clock = Tally.of(traces), clocked(traces, plain)
    assert tokens_per_second(with_clock) == tokens_per_second(without)
    assert time_shares(with_clock) == time_shares(without)
    assert with_clock.total("num_emitted") == without.total("num_emitted")


def test_without_seconds_speed_is_undefined():
    traces = [make_trace(name, make_step(0, 0)) for name in "ab"]
    assert tokens_per_second(Tally.of(traces)).value is None
    assert speedup(clocked(traces, traces)) == Estimate(None, None, None, 2), "no reason, either"


def test_what_is_read_once_more_is_a_share_of_the_seconds() -> None:
    """3 of 6 tokens of a forward of 0.6 seconds, and none of the next."""
    steps = [make_step(2, 2, seconds=(0.1, 0.6, 0.1)), make_step(0, 2, seconds=(0.0, 0.2, 0.0))]
    steps = [replace(step, reread=again) for step, again in zip(steps, (3, 0), strict=True)]
    tally = Tally.of([make_trace("a", *steps)])
    share = reread_share(tally)
    assert share is not None
    assert share.value == pytest.approx(0.3 / 1.0)
    assert reread_share(Tally.of([make_trace("a", make_step(2, 2))])) is None


def test_a_gain_that_is_eaten_is_warned_of() -> None:
    """Tau 2, 2.5 plain steps' seconds a step, half of them for what was read once more."""

    def tally(again: int | None) -> Tally:
        step = replace(make_step(1, 2, seconds=(0.0, 2.5, 0.0)), reread=again)
        plain = make_step(0, 0, seconds=(0.0, 1.0, 0.0))
        return clocked([make_trace("a", step)], [make_trace("a", plain)])

    warning = eaten(tally(3))
    assert warning is not None
    assert warning.startswith("warning: 50% of the steps' seconds went into tokens")
    assert "speedup 0.80, and about 1.60 without" in warning
    assert eaten(tally(0)) is None, "slow for other reasons"
    assert eaten(tally(None)) is None
