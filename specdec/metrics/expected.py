"""What a rule accepts on average, at best, instead of another one, and how far it strays.

Where `acceptance` counts what happened, these average over what the rule's noise could have done,
step by step, from probabilities that the rule knew anyway.
"""

from collections.abc import Sequence

from specdec.core.trace import Trace
from specdec.metrics import counts
from specdec.metrics.estimate import Estimate, Sums, paired_difference, ratio_estimate


def expected_accepted(traces: Sequence[Trace]) -> Estimate:
    """Return the mean over steps of E[A], given the candidates, the rule's noise averaged out.

    It has the mean of `num_accepted` and less noise (Rao-Blackwell), but for stop strings, which it
    does not know: what they cut off is accepted here.
    """
    return counts.ratio_of_sums(traces, _expected, counts.num_steps)


def transport_bound(traces: Sequence[Trace]) -> Estimate | None:
    """Return the most that any rule can make of P(A >= 1) with k i.i.d. draws, mean over steps.

    k is the number of candidates at the root; for one it is the overlap there. A line of reference
    for the first depth of `reached_depth`: candidates drawn without replacement, or fixed in part,
    can do better. (The optimal transport of Sun et al. 2023, SpecTr.) None where none was sampled.
    """
    estimate = counts.ratio_of_sums(
        traces,
        lambda trace: sum(sum(step.bound) for step in trace.steps),
        lambda trace: sum(len(step.bound) for step in trace.steps),
    )
    return None if estimate.value is None else estimate


def total_variation(traces: Sequence[Trace]) -> Estimate | None:
    """Return the mean over emitted tokens of TV(law, p), law being what the token was drawn by.

    Exact at each visited context: no difference between samples. None for lossless rules.
    """
    return _divergence(traces, 0)


def kl(traces: Sequence[Trace]) -> Estimate | None:
    """Return the mean over emitted tokens of KL(law || p) in nats; see `total_variation`."""
    return _divergence(traces, 1)


def judged(traces: Sequence[Trace]) -> dict[str, dict[str, Estimate]]:
    """Return for each judge E[A] per step, and how much more that is than the deciding rule's.

    The difference is paired step by step: both saw the very same candidates.
    """
    first = next((step for trace in traces for step in trace.steps), None)
    deciding = counts.sums_per_prompt(traces, _expected, counts.num_steps)
    found: dict[str, dict[str, Estimate]] = {}
    for name in () if first is None else first.judged:
        sums = _judged_sums(traces, name)
        found[name] = {
            "expected_accepted": ratio_estimate(*sums),
            "difference": paired_difference(sums, deciding),
        }
    return found


def _expected(trace: Trace) -> float:
    return sum(step.expected_accepted for step in trace.steps)


def _judged_sums(traces: Sequence[Trace], name: str) -> Sums:
    return counts.sums_per_prompt(
        traces, lambda trace: sum(step.judged[name] for step in trace.steps), counts.num_steps
    )


def _divergence(traces: Sequence[Trace], which: int) -> Estimate | None:
    """Average the first or second number of each visited node; each of them emitted a token."""
    estimate = counts.ratio_of_sums(
        traces,
        lambda trace: sum(pair[which] for step in trace.steps for pair in step.divergence),
        lambda trace: sum(len(step.divergence) for step in trace.steps),
    )
    return None if estimate.value is None else estimate
