import pytest
from metric_traces import make_step, make_trace, random_traces

from specdec.metrics import (
    Estimate,
    Tally,
    prefill_seconds,
    speedup,
    time_shares,
    tokens_per_second,
)


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
    fast = [make_trace(name, make_step(1, 1, seconds=(0.5, 0.5, 0.0))) for name in "ab"]
    slow = [make_trace(name, *[make_step(0, 0, seconds=(0.0, 1.0, 0.0))] * 3) for name in "ab"]
    assert speedup(Tally.of(fast), Tally.of(slow)) == Estimate(2.0, 2.0, 2.0, 2)


def test_an_arm_is_exactly_as_fast_as_itself():
    traces = random_traces(23, 8, 3, seed=1)
    assert speedup(Tally.of(traces), Tally.of(list(traces))) == Estimate(1.0, 1.0, 1.0, 23)


def test_speedup_is_narrower_than_the_speeds_it_compares():
    traces = random_traces(40, 30, 4, seed=2)
    slower = [
        make_trace(
            trace.prompt_id,
            *(
                make_step(s.accepted, s.depth, seconds=(1.0, s.verify_seconds, 0.0))
                for s in trace.steps
            ),
        )
        for trace in traces
    ]
    ratio, speed = speedup(Tally.of(traces), Tally.of(slower)), tokens_per_second(Tally.of(traces))
    assert relative_width(ratio) < 0.1 * relative_width(speed)


def relative_width(estimate: Estimate) -> float:
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return (estimate.high - estimate.low) / estimate.value


@pytest.mark.parametrize("change", ["missing", "turn"])
def test_speedup_refuses_other_prompts(change: str):
    traces = [make_trace(name, make_step(0, 0)) for name in "abc"]
    other = {
        "missing": traces[:2],
        "turn": [*traces, make_trace("c", make_step(0, 0), turn=1)],
    }[change]
    with pytest.raises(AssertionError, match="same prompts"):
        speedup(Tally.of(traces), Tally.of(other))


def test_without_seconds_speed_is_undefined():
    traces = [make_trace(name, make_step(0, 0)) for name in "ab"]
    assert tokens_per_second(Tally.of(traces)).value is None
    assert speedup(Tally.of(traces), Tally.of(traces)).value is None
