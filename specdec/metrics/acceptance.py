"""How many draft tokens survive, and what one of them costs.

A is the number of accepted draft tokens of a step, the verifier's own token excluded.
"""

from collections.abc import Callable, Sequence

import numpy as np

from specdec.core.trace import Step, Trace
from specdec.core.values import Outcome
from specdec.metrics import counts
from specdec.metrics.estimate import (
    Estimate,
    FloatArray,
    Sums,
    paired_difference,
    paired_ratio,
    ratio_estimates,
)


def block_efficiency(traces: Sequence[Trace]) -> Estimate:
    """Return tau: emitted tokens / verifier calls, the verifier's own token included.

    Counts text only: nothing that follows the end of a text is emitted. (Sun et al. 2023; the
    mean number of tokens per call of Leviathan et al. 2023.)
    """
    return counts.ratio_of_sums(traces, counts.num_emitted, counts.num_steps)


def efficiency_difference(traces: Sequence[Trace], reference: Sequence[Trace]) -> Estimate:
    """Return the block efficiency minus that of another arm over the same prompts, paired."""
    return paired_difference(*_efficiencies(traces, reference))


def efficiency_ratio(traces: Sequence[Trace], reference: Sequence[Trace]) -> Estimate:
    """Return the block efficiency over that of another arm over the same prompts, paired."""
    return paired_ratio(*_efficiencies(traces, reference))


def _efficiencies(traces: Sequence[Trace], reference: Sequence[Trace]) -> tuple[Sums, Sums]:
    counts.assert_same_prompts(traces, reference)
    return (
        counts.sums_per_prompt(traces, counts.num_emitted, counts.num_steps),
        counts.sums_per_prompt(reference, counts.num_emitted, counts.num_steps),
    )


def num_accepted(traces: Sequence[Trace]) -> Estimate:
    """Return the mean of A over steps."""
    return counts.ratio_of_sums(traces, counts.num_accepted, counts.num_steps)


def acceptance_rate(traces: Sequence[Trace]) -> Estimate | None:
    """Return accepted / drafted tokens, or None where that says nothing.

    Only for chains: siblings in a tree exclude each other, so that more of them lower the rate
    while they raise A. None as well where nothing was drafted.
    """
    if not all(step.drafted == step.depth for trace in traces for step in trace.steps):
        return None
    estimate = counts.ratio_of_sums(traces, counts.num_accepted, counts.num_drafted)
    return None if estimate.value is None else estimate


def acceptance_at_depth(traces: Sequence[Trace]) -> dict[int, Estimate]:
    """Return P(A >= d given A >= d-1) by depth d = 1, 2, ... up to the deepest draft token.

    The denominator counts the steps at risk (Kaplan and Meier 1958): those with A >= d-1 that
    submitted a candidate at depth d. A step whose text ended at depth A says nothing about deeper
    candidates: it is censored there, not a rejection. In a tree a step is at risk wherever the
    tree has a candidate, even if not below the accepted path: to have none there is a miss too.
    """
    reached, at_risk = reached_per_prompt(traces), at_risk_per_prompt(traces)
    return _by_depth(ratio_estimates(reached, at_risk))


def reached_depth(traces: Sequence[Trace]) -> dict[int, Estimate]:
    """Return P(A >= d) over all steps, by depth d = 1, 2, ... up to the deepest draft token.

    Unlike `acceptance_at_depth` this mixes how good the candidates are with how many there were.
    """
    reached = reached_per_prompt(traces)
    num_steps = counts.per_prompt(traces, counts.num_steps)
    return _by_depth(ratio_estimates(reached, np.tile(num_steps[:, None], reached.shape[1])))


def overlap(traces: Sequence[Trace]) -> Estimate:
    """Return alpha: the mean of sum_v min(p, q) over the visited nodes with candidates.

    It is 1 - TV(p, q), the acceptance probability of one draft token (Leviathan et al. 2023,
    their beta), and belongs to the pair of models and the contexts, not to the chain's length.
    """
    return counts.ratio_of_sums(
        traces,
        lambda trace: sum(sum(step.overlap) for step in trace.steps),
        lambda trace: sum(len(step.overlap) for step in trace.steps),
    )


def cost_ratio(traces: Sequence[Trace], baseline: Sequence[Trace]) -> Estimate:
    """Return the draft seconds of one step / the verifier's seconds of a one-token forward.

    `baseline` is the arm `proposer=none` over the same prompts, with as many requests in flight.
    For a chain of gamma tokens it is gamma times the c of Leviathan et al. 2023.
    """
    counts.assert_same_prompts(traces, baseline)
    assert counts.total(baseline, counts.num_drafted) == 0, "the baseline is not proposer=none"
    return paired_ratio(
        counts.sums_per_prompt(traces, counts.propose_seconds, counts.num_steps),
        counts.sums_per_prompt(baseline, counts.verify_seconds, counts.num_steps),
    )


def reached_per_prompt(traces: Sequence[Trace]) -> FloatArray:  # [P, D]
    """Count the steps with A >= d, for d = 1 .. D, the deepest draft token of all traces."""
    return _num_at_least(traces, lambda step: step.accepted)


def at_risk_per_prompt(traces: Sequence[Trace]) -> FloatArray:  # [P, D]
    """Count the steps at risk at depth d; see `acceptance_at_depth`."""
    return _num_at_least(traces, _depth_at_risk)


def _depth_at_risk(step: Step) -> int:
    """Return the deepest d that was put to the test; every d above it was as well."""
    tested = step.accepted if step.outcome is Outcome.ENDED else step.depth
    return min(step.accepted + 1, tested)


def _num_at_least(traces: Sequence[Trace], depth_of: Callable[[Step], int]) -> FloatArray:
    rows = {prompt_id: row for row, prompt_id in enumerate(counts.prompt_ids(traces))}
    deepest = max((step.depth for trace in traces for step in trace.steps), default=0)
    num_exactly = np.zeros((len(rows), deepest + 1))
    for trace in traces:
        depths = np.array([depth_of(step) for step in trace.steps], dtype=np.int64)
        num_exactly[rows[trace.prompt_id]] += np.bincount(depths, minlength=deepest + 1)
    return num_exactly[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]


def _by_depth(estimates: Sequence[Estimate]) -> dict[int, Estimate]:
    return dict(enumerate(estimates, start=1))
