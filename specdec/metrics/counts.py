"""What one trace adds to a sum; every metric is a ratio of two such sums, over all traces."""

from collections.abc import Callable, Sequence

import numpy as np

from specdec.core.trace import Trace
from specdec.metrics.estimate import Estimate, FloatArray, Sums, ratio_estimate

Count = Callable[[Trace], float]


def num_steps(trace: Trace) -> int:
    """Count the verifier calls, prefill excluded."""
    return len(trace.steps)


def num_emitted(trace: Trace) -> int:
    """Count the tokens that became text."""
    return sum(step.emitted for step in trace.steps)


def num_accepted(trace: Trace) -> int:
    """Count the draft tokens that became text."""
    return sum(step.accepted for step in trace.steps)


def num_drafted(trace: Trace) -> int:
    """Count the draft tokens that were submitted to the verifier."""
    return sum(step.drafted for step in trace.steps)


def propose_seconds(trace: Trace) -> float:
    """Add up the seconds that went into drafting."""
    return sum(step.propose_seconds for step in trace.steps)


def verify_seconds(trace: Trace) -> float:
    """Add up the seconds of the verifier's forwards."""
    return sum(step.verify_seconds for step in trace.steps)


def other_seconds(trace: Trace) -> float:
    """Add up the seconds of the steps that were neither drafting nor the verifier's forward."""
    return sum(step.other_seconds for step in trace.steps)


def decode_seconds(trace: Trace) -> float:
    """Add up all seconds of the steps: prefill excluded."""
    return sum(
        step.propose_seconds + step.verify_seconds + step.other_seconds for step in trace.steps
    )


def total(traces: Sequence[Trace], count: Count) -> float:
    """Add up over all traces."""
    return sum(map(count, traces))


def prompt_ids(traces: Sequence[Trace]) -> list[str]:  # [P]
    """Return each prompt once, sorted: no number depends on the order of the traces."""
    return sorted({trace.prompt_id for trace in traces})


def per_prompt(traces: Sequence[Trace], count: Count) -> FloatArray:  # [P]
    """Add up the turns of each prompt; prompts come in the order of `prompt_ids`."""
    sums = dict.fromkeys(prompt_ids(traces), 0.0)
    for trace in traces:
        sums[trace.prompt_id] += count(trace)
    return np.array(list(sums.values()), dtype=np.float64)


def sums_per_prompt(traces: Sequence[Trace], numerator: Count, denominator: Count) -> Sums:
    """Add up both sides of a ratio, prompt by prompt."""
    return Sums(per_prompt(traces, numerator), per_prompt(traces, denominator))


def ratio_of_sums(traces: Sequence[Trace], numerator: Count, denominator: Count) -> Estimate:
    """Estimate a metric from what a trace adds above and below the line.

    Long texts weigh more than short ones: this is the mean over steps (or tokens, or seconds),
    not the mean over prompts of each prompt's own ratio.
    """
    return ratio_estimate(*sums_per_prompt(traces, numerator, denominator))


def assert_same_prompts(traces: Sequence[Trace], baseline: Sequence[Trace]) -> None:
    """Raise an AssertionError unless both arms decoded the same turns in the same order."""
    ours = [(trace.prompt_id, trace.turn) for trace in traces]
    theirs = [(trace.prompt_id, trace.turn) for trace in baseline]
    assert ours == theirs, "the arms did not decode the same prompts in the same order"
