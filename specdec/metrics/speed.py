"""How fast text comes out, where the seconds go, and against which arm."""

from collections.abc import Sequence

import numpy as np

from specdec.core.trace import Trace
from specdec.metrics import counts
from specdec.metrics.estimate import Estimate, paired_ratio, ratio_estimates


def tokens_per_second(traces: Sequence[Trace]) -> Estimate:
    """Return the decode speed: emitted tokens / all seconds of the steps, prefill excluded.

    Prefill depends on the prompt's length, not on how the text is decoded, and is reported beside
    it (`prefill_seconds`): a draft model reads the prompt too, which this number leaves out. A
    step's seconds are a request's share of the wall time, so this is the throughput of all B
    requests in flight together.
    """
    return counts.ratio_of_sums(traces, counts.num_emitted, counts.decode_seconds)


def prefill_seconds(traces: Sequence[Trace]) -> Estimate:
    """Return the mean seconds of prefill, verifier and proposer, of one turn."""
    return counts.ratio_of_sums(traces, lambda trace: trace.prefill_seconds, lambda _: 1)


def time_shares(traces: Sequence[Trace]) -> dict[str, Estimate]:
    """Return which share of the steps' seconds went into each part; the shares add up to 1."""
    parts = {
        "propose": counts.propose_seconds,
        "verify": counts.verify_seconds,
        "other": counts.other_seconds,
    }
    seconds = np.stack([counts.per_prompt(traces, part) for part in parts.values()], axis=1)
    shares = ratio_estimates(seconds, np.repeat(seconds.sum(axis=1, keepdims=True), 3, axis=1))
    return dict(zip(parts, shares, strict=True))


def speedup(traces: Sequence[Trace], baseline: Sequence[Trace]) -> Estimate:
    """Return the decode speed over that of `baseline`, the arm `proposer=none`.

    Both arms must hold the same turns of the same prompts in the same order (AssertionError
    otherwise); tokens are counted alike, from ids. Paired: what makes a prompt slow for both arms
    does not widen the interval. The interval knows of the choice of prompts, not of a machine
    that changed between the arms: interleave them.
    """
    counts.assert_same_prompts(traces, baseline)
    return paired_ratio(
        counts.sums_per_prompt(traces, counts.num_emitted, counts.decode_seconds),
        counts.sums_per_prompt(baseline, counts.num_emitted, counts.decode_seconds),
    )
