"""Whether a difference between two arms is more than the choice of prompts, and of many at once."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from specdec.metrics.estimate import Sums, resampled_differences
from specdec.metrics.tally import Tally

ROUNDING = 1e-9  # ratios that differ by less are the same number


def efficiency_p_value(tally: Tally, reference: Tally) -> float | None:
    """Return the two-sided p-value of equal block efficiency, paired over prompts."""
    tally.assert_paired(reference)
    return p_value(*(each.sums("num_emitted", "num_steps") for each in (tally, reference)))


def speedup_p_value(tally: Tally, reference: Tally) -> float | None:
    """Return the two-sided p-value of equal tokens per second, paired over prompts."""
    tally.assert_paired(reference)
    return p_value(*(each.sums("num_emitted", "decode_seconds") for each in (tally, reference)))


def p_value(first: Sums, second: Sums) -> float | None:
    """Test (ratio of `first`) - (ratio of `second`) = 0 by its bootstrap standard error.

    The standardised difference is taken for a Student t with as many degrees of freedom as there
    are prompts, less one. None where fewer than two prompts contribute.
    """
    value, resampled, num_prompts = resampled_differences(first, second)
    if num_prompts < 2 or np.isnan(value):
        return None
    deviation = float(np.nanstd(resampled))
    if abs(value) < ROUNDING:
        return 1.0
    if deviation == 0.0:
        return 0.0
    return float(2 * stats.t.sf(abs(value) / deviation, num_prompts - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, by the step-down method of Holm (1979)."""
    order = np.argsort(p_values, kind="stable")
    number = len(p_values)
    steps = [min(1.0, p_values[i] * (number - rank)) for rank, i in enumerate(order)]
    adjusted = np.empty(number)
    adjusted[order] = np.maximum.accumulate(steps) if steps else []
    return adjusted.tolist()
