import json
import operator
import time
from typing import Any, cast

import pytest
from metric_traces import example, make_step, make_trace, random_traces

from specdec.core.trace import Trace
from specdec.metrics import DEFINITIONS, Estimate, Tally, block_efficiency, summarize
from specdec.metrics.summary import DEFINITIONS as SAME_DEFINITIONS

# And what no trace tells.
NEED_MORE = {"cost_ratio", "speedup", "difference", "ratio", "peak_memory_bytes"}


def test_example_by_hand():
    summary = summarize(Tally.of(example()))
    assert summary["block_efficiency"]["value"] == 11 / 5
    assert summary["acceptance_rate"]["value"] == 7 / 15
    assert summary["acceptance_at_depth"]["2"]["value"] == 2 / 3
    assert summary["reached_depth"]["3"]["value"] == 1 / 5
    counters = {name: value for name, value in summary.items() if not isinstance(value, dict)}
    assert counters == {
        "num_prompts": 2,
        "num_turns": 2,
        "num_steps": 5,
        "num_emitted": 11,
        "num_drafted": 15,
        "num_accepted_tokens": 7,
        "draft_calls": 15,
        "transport_bound": None,
        "total_variation": None,
        "kl": None,
    }
    assert summary["finish_reasons"] == {"eos": 1, "length": 1}


def test_every_key_is_defined():
    assert set(summarize(Tally.of(example()))) | NEED_MORE == set(DEFINITIONS)
    assert all(sentence.endswith(".") for sentence in DEFINITIONS.values())
    assert DEFINITIONS is SAME_DEFINITIONS
    with pytest.raises(TypeError):
        operator.setitem(cast(Any, DEFINITIONS), "mine", "better")


@pytest.mark.parametrize(
    "traces",
    [
        [],
        [make_trace("a")],
        [make_trace("a", make_step(0, 0))],
        [make_trace("a", make_step(1, 2, drafted=6))],
        [make_trace("a", make_step(1, 2, bound=(0.5,), divergence=((0.1, 0.2),), judged={"b": 1}))],
        example(),
        random_traces(5, 5, 3, seed=0, ended=True),
    ],
)
def test_summary_is_valid_json_and_reads_back(traces: list[Trace]):
    summary = summarize(Tally.of(traces))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert Estimate(**summary["block_efficiency"]) == block_efficiency(Tally.of(traces))


def test_summary_depends_on_the_traces_only():
    traces = random_traces(9, 6, 3, seed=1)
    rows = [Trace.from_row(json.loads(json.dumps(trace.to_row()))) for trace in traces]
    kept = {name: value for name, value in summarize(Tally.of(rows)).items() if name not in ROUNDED}
    assert kept == {
        name: value for name, value in summarize(Tally.of(traces)).items() if name not in ROUNDED
    }


# Traces keep six digits of overlaps and nine of seconds.
ROUNDED = {"overlap", "tokens_per_second", "prefill_seconds", "time_shares"}


def test_a_large_run_is_summarized_at_once():
    # Processor time, so that a busy machine raises no alarm: 0.35 s on the machine this is from.
    traces = random_traces(480, 200, 5, seed=0)
    start = time.process_time()
    summarize(Tally.of(traces))
    assert time.process_time() - start < 1.0
