"""Whether a difference between two arms is more than the choice of prompts, and of many at once.

A difference is standardised by its bootstrap standard error and taken for a Student t with as many
degrees of freedom as there are prompts, less one. Its p-value and its interval come from the same
t: the interval at 1 - a leaves out 0 if and only if p < a.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from specdec.metrics.estimate import MIN_PROMPTS, Estimate, Resampled
from specdec.metrics.tally import Tally

LEVEL = 0.05
ROUNDING = 1e-9  # ratios that differ by less are the same number


@dataclass(frozen=True)
class Contrast:
    """Two numbers of the same prompts, to be compared."""

    first: Resampled
    second: Resampled

    @property
    def _difference(self) -> Resampled:
        return self.first.minus(self.second)

    @property
    def p_value(self) -> float | None:
        """The two-sided p-value of no difference; None for fewer than MIN_PROMPTS prompts."""
        found = self._difference
        if found.n < MIN_PROMPTS or math.isnan(found.value):
            return None
        if abs(found.value) < ROUNDING:
            return 1.0
        deviation = float(np.nanstd(found.resamples))
        if deviation == 0.0:
            return 0.0
        return float(2 * stats.t.sf(abs(found.value) / deviation, found.n - 1))

    def difference(self, level: float = LEVEL) -> Estimate:
        """Return the difference with its interval at 1 - `level`."""
        found = self._difference
        if math.isnan(found.value):
            return Estimate(None, None, None, found.n)
        if found.n < MIN_PROMPTS:
            return Estimate(found.value, None, None, found.n)
        reach = _quantile(level, found.n) * float(np.nanstd(found.resamples))
        return Estimate(found.value, found.value - reach, found.value + reach, found.n)

    def ratio(self, level: float = LEVEL) -> Estimate:
        """Return the ratio with its interval at 1 - `level` (Fieller 1954).

        It holds all r for which `first` - r * `second` does not differ from 0: it leaves out 1 if
        and only if that of the difference leaves out 0. None where `second` may be 0.
        """
        found = self.first.over(self.second)
        if math.isnan(found.value):
            return Estimate(None, None, None, found.n)
        value, n = found.value, found.n
        ends = _fieller(self.first, self.second, _quantile(level, n)) if n >= MIN_PROMPTS else None
        return Estimate(value, *(ends or (None, None)), n)


def _quantile(level: float, num_prompts: int) -> float:
    return float(stats.t.isf(level / 2, num_prompts - 1))


def _fieller(above: Resampled, below: Resampled, quantile: float) -> tuple[float, float] | None:
    """Solve (a - r b)^2 = quantile^2 var(a - r b) for r."""
    known = ~(np.isnan(above.resamples) | np.isnan(below.resamples))
    (a_a, a_b), (_, b_b) = quantile**2 * np.cov(
        above.resamples[known], below.resamples[known], bias=True
    )
    a, b = above.value, below.value
    square, middle, rest = b * b - b_b, a * b - a_b, a * a - a_a
    if square <= 0:
        return None
    root = math.sqrt(max(0.0, middle * middle - square * rest))
    return float((middle - root) / square), float((middle + root) / square)


def efficiency_contrast(tally: Tally, reference: Tally) -> Contrast:
    """Compare the block efficiency of two arms over the same prompts."""
    tally.assert_paired(reference)
    both = [Resampled.of(each.sums("num_emitted", "num_steps")) for each in (tally, reference)]
    return Contrast(both[0], both[1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, by the step-down method of Holm (1979)."""
    order = np.argsort(p_values, kind="stable")
    number = len(p_values)
    steps = [min(1.0, p_values[i] * (number - rank)) for rank, i in enumerate(map(int, order))]
    adjusted = np.empty(number)
    adjusted[order] = np.maximum.accumulate(steps) if steps else []
    return adjusted.tolist()


def holm_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """Return at which level Holm's method decides on each: p below it is a difference.

    The smallest of k is held to level / k, the next one to level / (k - 1), and so on up to the
    first that is not below; it and all larger ones are held to the same.
    """
    number = len(p_values)
    levels = [level] * number
    divisor = number
    for i in np.argsort(p_values, kind="stable"):
        levels[i] = level / divisor
        if p_values[i] < levels[i] and divisor > 1:
            divisor -= 1
    return levels
