import pytest

from specdec.metrics import Tally, block_efficiency, convert
from tests.support.metric_traces import example, make_step, make_trace, random_traces


def counters():
    """The example and a step without a draft: A sums to 7 and emitted to 12 over 6 steps."""
    first, second = example()
    undrafted = make_step(0, 0, seconds=(0.0, 1.0, 0.0))
    slow = make_step(2, 3, seconds=(1.0, 1.0, 0.0))
    return [
        make_trace("a", *first.steps, undrafted, prefill=1.0),  # 8 tokens in 2 seconds
        make_trace("b", slow, second.steps[1], prefill=2.0),  # 4 tokens in 4 seconds
    ]


def test_vllm_counts_drafts_and_not_steps():
    assert convert.vllm(Tally.of(counters())) == pytest.approx(
        {
            "mean_acceptance_length": 1 + 7 / 5,
            "draft_acceptance_rate": 7 / 15,
            "acceptance_rate_at_position_0": 4 / 5,
            "acceptance_rate_at_position_1": 2 / 5,
            "acceptance_rate_at_position_2": 1 / 5,
        }
    )


def test_sglang_takes_every_draft_for_a_full_one():
    assert convert.sglang(Tally.of(counters())) == pytest.approx(
        {
            "spec_accept_length": 12 / 6,
            "spec_accept_rate": (12 - 6) / (6 * 3),
            "spec_accept_rate_with_bonus": 12 / (6 * 4),
        }
    )


def test_spec_bench_averages_speeds_over_prompts():
    assert convert.spec_bench(Tally.of(counters())) == pytest.approx(
        {"mean_accepted_tokens": 12 / 6, "tokens_per_second": (8 / 2 + 4 / 4) / 2}
    )


def test_eagle_conditions_on_the_depths_above():
    assert convert.eagle(Tally.of(counters())) == pytest.approx(
        {"tau": 12 / 6, "0-alpha": 4 / 5, "1-alpha": 2 / 3, "2-alpha": 1 / 2}
    )


def test_all_agree_on_full_chains_that_no_text_ends_in():
    traces = random_traces(6, 30, 3, seed=0)
    length = pytest.approx(block_efficiency(Tally.of(traces)).value)
    assert convert.vllm(Tally.of(traces))["mean_acceptance_length"] == length
    assert convert.sglang(Tally.of(traces))["spec_accept_length"] == length
    assert convert.spec_bench(Tally.of(traces))["mean_accepted_tokens"] == length
    assert convert.eagle(Tally.of(traces))["tau"] == length
    rate = pytest.approx(convert.vllm(Tally.of(traces))["draft_acceptance_rate"])
    assert convert.sglang(Tally.of(traces))["spec_accept_rate"] == rate


def test_one_fact_two_numbers():
    """A block of 7 with 2.9 tokens per forward is an acceptance rate of 0.27 in SGLang."""
    steps = [make_step(2, 7)] * 9 + [make_step(1, 7)]
    numbers = convert.sglang(Tally.of([make_trace("a", *steps)]))
    assert numbers["spec_accept_length"] == pytest.approx(2.9)
    assert round(numbers["spec_accept_rate"], 2) == 0.27


def test_nothing_is_printed_for_nothing():
    undrafted = [make_trace("a", make_step(0, 0))]
    assert convert.vllm(Tally.of(undrafted)) == convert.vllm(Tally.of([])) == {}
    assert convert.sglang(Tally.of(undrafted)) == {"spec_accept_length": 1.0}
    assert convert.spec_bench(Tally.of(undrafted)) == {"mean_accepted_tokens": 1.0}
    assert convert.eagle(Tally.of(undrafted)) == {"tau": 1.0}
    nothing = Tally.of([])
    assert convert.sglang(nothing) == convert.spec_bench(nothing) == convert.eagle(nothing) == {}
