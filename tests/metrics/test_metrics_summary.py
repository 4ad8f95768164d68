import json
import operator
import time
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from specdec.core.trace import Trace
from specdec.metrics import DEFINITIONS, Estimate, Tally, block_efficiency, pooled, summarize
from specdec.metrics.summary import DEFINITIONS as SAME_DEFINITIONS
from tests.support.metric_traces import example, make_step, make_trace, random_traces

# And what no trace tells.
NEED_MORE = {"regret", "difference", "ratio", "p_value", "peak_memory_bytes", "compile_seconds"}
NEED_MORE |= {"num_skipped", "num_truncated", "num_unanswered"}  # the prompts
NEED_MORE |= {"experts_touched", "experts_at_tokens"}  # experts that were counted
NEED_MORE |= {"reread_share"}  # a recurrent verifier


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


def test_what_a_plug_in_does_not_say_is_no_number():
    """Not every step knows of its draft's forwards: their number is unknown, and not smaller."""
    step = make_step(1, 2)
    summary = summarize(Tally.of([make_trace("a", step, replace(step, draft_calls=None))]))
    assert summary["draft_calls"] is None
    assert summary["expected_accepted"] == {"value": None, "low": None, "high": None, "n": 0}
    assert summarize(Tally.of([make_trace("a", step)]))["draft_calls"] == 2


@pytest.mark.parametrize("missing", ["num_drafted", "prefill_seconds", "decode_seconds", "overlap"])
def test_a_column_that_nobody_noted_is_unknown(missing: str):
    """Replay knows not all that decoding does; nought would be a claim."""
    tally = Tally.of(random_traces(9, 6, 3, seed=1))
    kept = {name: column for name, column in tally.columns.items() if name != missing}
    poorer = Tally(tally.prompt_ids, tally.categories, kept)
    for known in (poorer, Tally.from_rows(json.loads(json.dumps(poorer.to_rows())))):
        summary = summarize(known)
        name = {"decode_seconds": "tokens_per_second"}.get(missing, missing)
        row = summary[name]
        assert (row if missing == "num_drafted" else row["value"]) is None
    assert np.isnan(pooled([tally, poorer]).total(missing)), "a part of it is unknown"


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
