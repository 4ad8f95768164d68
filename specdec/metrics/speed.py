"""How fast text comes out, where the seconds go, and how much faster than one token at a time.

Seconds of other hours or machines are not comparable. So speed is measured only against a clock:
plain steps (`proposer=none`) that were timed in between, on the same prompts (`clock.*` of a
`Tally`; `clocked.*` are the arm's own steps of those texts). And only as far as it can be true: a
step reads at least the token that a plain step reads, so it takes no less time, and a speedup is at
most tau. Where the seconds say otherwise there is no number, but a reason. This is decided here;
tables, pages, plots and predictions ask.
"""

import numpy as np

from specdec.metrics.columns import CLOCK, CLOCKED, LEARN
from specdec.metrics.estimate import Estimate, Resampled, ratio_estimates
from specdec.metrics.significance import Contrast
from specdec.metrics.tally import Tally

NO_CLOCK = "timings not comparable: no plain step (proposer=none) was timed beside this run's steps"
TOO_CHEAP = (
    "timings not comparable: a step took less time than a one-token step, which reads no more;"
    " the machine was not the same all along, measure again when it is quiet"
)
# A step's cost in plain steps, below which its seconds cannot be true: the upper end of its
# interval, so that honest steps at 1.0 are hardly ever called false; without an interval the value.
MIN_COST = 0.95
MIN_COST_OF_FEW = 0.8


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
    parts = ("propose", "verify", "other", *(["learn"] if tally.knows(LEARN) else []))
    seconds = np.stack([tally.column(f"{part}_seconds") for part in parts], axis=1)
    whole = np.repeat(seconds.sum(axis=1, keepdims=True), len(parts), axis=1)
    shares = ratio_estimates(seconds, whole)
    return dict(zip(parts, shares, strict=True))


def step_cost(tally: Tally) -> Estimate:
    """Return the seconds of a step over those of a plain step, paired; see `incomparable`."""
    reason = incomparable(tally)
    return _unknown(reason) if reason is not None else _cost(tally).estimate()


def speedup(tally: Tally) -> Estimate:
    """Return tau / step cost: the decode speed over that of plain steps on the same prompts.

    Tau is of all texts, the cost of those beside which plain steps were timed. The interval knows
    of the choice of prompts, and of a machine that changed as far as the clock saw it.
    """
    reason = incomparable(tally)
    return _unknown(reason) if reason is not None else _speedup(tally).estimate()


def regret(tally: Tally, best: Tally) -> Estimate:
    """Return the seconds per token over those of another arm on the same prompts, less 1; paired.

    The other arm is the best fixed one, chosen with hindsight: what an arm that chooses for itself
    could have saved.
    """
    tally.assert_paired(best)
    own = Resampled.of(tally.sums("decode_seconds", "num_emitted"))
    found = own.over(Resampled.of(best.sums("decode_seconds", "num_emitted"))).estimate()

    def less_one(value: float | None) -> float | None:
        return None if value is None else value - 1

    return Estimate(less_one(found.value), less_one(found.low), less_one(found.high), found.n)


def cost_ratio(tally: Tally) -> Estimate:
    """Return the draft seconds of one step / the verifier's seconds of a one-token forward.

    For a chain of gamma tokens it is gamma times the c of Leviathan et al. 2023.
    """
    reason = incomparable(tally)
    if reason is not None:
        return _unknown(reason)
    draft = Resampled.of(tally.sums(f"{CLOCKED}propose_seconds", f"{CLOCKED}num_steps"))
    return draft.over(_plain(tally, "verify_seconds")).estimate()


def reread_share(tally: Tally) -> Estimate | None:
    """Return the share of the steps' seconds that went into tokens that were read once more.

    A recurrent verifier cannot be rewound to just any length. The seconds of a forward are shared
    out over its tokens. None: nothing is ever read again.
    """
    if not tally.knows("reread_seconds"):
        return None
    return tally.ratio("reread_seconds", "decode_seconds")


def eaten(tally: Tally) -> str | None:
    """Warn where decoding is slower than one token at a time for what is read once more alone."""
    share, found = reread_share(tally), speedup(tally).value
    if share is None or share.value is None or found is None or found >= 1:
        return None
    without = found / (1 - share.value)
    if without <= 1:
        return None
    return (
        f"warning: {share.value:.0%} of the steps' seconds went into tokens that the verifier read"
        f" once more, since its states cannot be rewound: speedup {found:.2f}, and about"
        f" {without:.2f} without; a shorter chain is rewound less often"
    )


def speedup_contrast(tally: Tally, reference: Tally) -> Contrast | None:
    """Compare the speedups of two arms over the same prompts; None where one has none."""
    tally.assert_paired(reference)
    if any(incomparable(each) is not None for each in (tally, reference)):
        return None
    return Contrast(_speedup(tally), _speedup(reference))


def incomparable(tally: Tally) -> str | None:
    """Say why nothing can be said of speed; None if it can, or if there are no seconds at all."""
    if not tally.total("decode_seconds") > 0:
        return None
    if not tally.total(f"{CLOCK}decode_seconds") > 0:
        return NO_CLOCK
    cost = _cost(tally).estimate()
    least, found = (MIN_COST, cost.high) if cost.high is not None else (MIN_COST_OF_FEW, cost.value)
    return TOO_CHEAP if found is not None and found < least else None


def _unknown(reason: str) -> Estimate:
    return Estimate(None, None, None, 0, reason)


def _cost(tally: Tally) -> Resampled:
    own = Resampled.of(tally.sums(f"{CLOCKED}decode_seconds", f"{CLOCKED}num_steps"))
    return own.over(_plain(tally, "decode_seconds"))


def _plain(tally: Tally, seconds: str) -> Resampled:
    return Resampled.of(tally.sums(f"{CLOCK}{seconds}", f"{CLOCK}num_steps"))


def _speedup(tally: Tally) -> Resampled:
    return Resampled.of(tally.sums("num_emitted", "num_steps")).over(_cost(tally))
