import pytest
from metric_traces import make_step, make_trace, random_traces

from specdec.metrics import Estimate, prefill_seconds, speedup, time_shares, tokens_per_second


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
    assert tokens_per_second(traces).value == pytest.approx(3.0)
    assert prefill_seconds(traces).value == 6.0
    shares = {name: share.value for name, share in time_shares(traces).items()}
    assert shares == pytest.approx({"propose": 0.2, "verify": 0.75, "other": 0.05})


def test_shares_add_up_to_one():
    shares = time_shares(random_traces(9, 5, 3, seed=0)).values()
    assert sum(share.value or 0.0 for share in shares) == pytest.approx(1.0)


def test_prefill_is_a_mean_over_turns():
    turns = [make_trace("a", turn=0, prefill=1.0), make_trace("a", turn=1, prefill=2.0)]
    assert prefill_seconds(turns) == Estimate(1.5, None, None, 1)


def test_speedup_by_hand():
    # 2 tokens a second against 1 token a second; the texts need not be equally long.
    fast = [make_trace(name, make_step(1, 1, seconds=(0.5, 0.5, 0.0))) for name in "ab"]
    slow = [make_trace(name, *[make_step(0, 0, seconds=(0.0, 1.0, 0.0))] * 3) for name in "ab"]
    assert speedup(fast, slow) == Estimate(2.0, 2.0, 2.0, 2)


def test_an_arm_is_exactly_as_fast_as_itself():
    traces = random_traces(23, 8, 3, seed=1)
    assert speedup(traces, list(traces)) == Estimate(1.0, 1.0, 1.0, 23)


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
    ratio, speed = speedup(traces, slower), tokens_per_second(traces)
    assert relative_width(ratio) < 0.1 * relative_width(speed)


def relative_width(estimate: Estimate) -> float:
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return (estimate.high - estimate.low) / estimate.value


@pytest.mark.parametrize("change", ["order", "missing", "turn"])
def test_speedup_refuses_other_prompts(change: str):
    traces = [make_trace(name, make_step(0, 0)) for name in "abc"]
    other = {
        "order": traces[::-1],
        "missing": traces[:2],
        "turn": [*traces[:2], make_trace("c", make_step(0, 0), turn=1)],
    }[change]
    with pytest.raises(AssertionError, match="same prompts"):
        speedup(traces, other)


def test_without_seconds_speed_is_undefined():
    traces = [make_trace(name, make_step(0, 0)) for name in "ab"]
    assert tokens_per_second(traces).value is None
    assert speedup(traces, traces).value is None
