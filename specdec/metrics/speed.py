"""How fast text comes out, where the seconds go, and against which arm."""

import numpy as np

from specdec.metrics.estimate import Estimate, paired_ratio, ratio_estimates
from specdec.metrics.tally import Tally


def tokens_per_second(tally: Tally) -> Estimate:
    """Return the decode speed: emitted tokens / all seconds of the steps, prefill excluded.

    Prefill depends on the prompt's length, not on how the text is decoded, and is reported beside
    it (`prefill_seconds`): a draft model reads the prompt too, which this number leaves out. A
    step's seconds are a request's share of the wall time, so this is the throughput of all B
    requests in flight together.
    """
    return tally.ratio("num_emitted", "decode_seconds")


def prefill_seconds(tally: Tally) -> Estimate:
    """Return the mean seconds of prefill, verifier and proposer, of one turn."""
    return tally.ratio("prefill_seconds", "num_turns")


def time_shares(tally: Tally) -> dict[str, Estimate]:
    """Return which share of the steps' seconds went into each part; the shares add up to 1."""
    parts = ("propose", "verify", "other")
    seconds = np.stack([tally.column(f"{part}_seconds") for part in parts], axis=1)
    shares = ratio_estimates(seconds, np.repeat(seconds.sum(axis=1, keepdims=True), 3, axis=1))
    return dict(zip(parts, shares, strict=True))


def speedup(tally: Tally, baseline: Tally) -> Estimate:
    """Return the decode speed over that of `baseline`, the arm `proposer=none`.

    Both arms must hold as many turns of the same prompts (AssertionError otherwise); tokens are
    counted alike, from ids. Paired: what makes a prompt slow for both arms does not widen the
    interval. The interval knows of the choice of prompts, not of a machine that changed between
    the arms: interleave them.
    """
    tally.assert_paired(baseline)
    return paired_ratio(
        tally.sums("num_emitted", "decode_seconds"), baseline.sums("num_emitted", "decode_seconds")
    )
