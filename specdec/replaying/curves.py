"""Seconds over sizes: measured points, joined by lines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Seconds over a size.

    Below the smallest size they are what they are there; beyond the largest the last line goes on.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(self.seconds) >= 1
        assert list(self.sizes) == sorted(set(self.sizes))

    def at(self, size: float) -> float:
        """Return the seconds at a size."""
        return float(self.along([size])[0])

    def along(self, sizes: ArrayLike) -> Numbers:  # [C] -> [C]
        """Return the seconds at each of some sizes."""
        wanted = np.asarray(sizes, dtype=np.float64)
        found = np.interp(wanted, self.sizes, self.seconds)
        if len(self.sizes) == 1:
            return found
        (low, high), (before, last) = self.sizes[-2:], self.seconds[-2:]
        slope = max(0.0, (last - before) / (high - low))
        return found + slope * np.maximum(0.0, wanted - high)


@dataclass(frozen=True)
class Surface:
    """Seconds over a number of tokens and the context before them, by lines in both."""

    contexts: tuple[int, ...]
    curves: tuple[Curve, ...]  # at each context, over the tokens

    def __post_init__(self) -> None:
        assert len(self.contexts) == len(self.curves)
        assert len({curve.sizes for curve in self.curves}) == 1

    def at(self, num_tokens: float, context: float) -> float:
        """Return the seconds of so many tokens behind a context."""
        return float(self.along(num_tokens, [context])[0])

    def along(self, num_tokens: float, contexts: ArrayLike) -> Numbers:  # [C] -> [C]
        """Return the seconds of so many tokens behind each of some contexts."""
        seconds = tuple(curve.at(num_tokens) for curve in self.curves)
        return Curve(self.contexts, seconds).along(contexts)

    @classmethod
    def of(cls, seconds: dict[tuple[int, int], float]) -> "Surface":
        """Join a whole grid of points, by tokens and context.

        More tokens, or more context, never take less: what noise says against that is averaged out.
        """
        sizes = tuple(sorted({size for size, _ in seconds}))
        contexts = tuple(sorted({context for _, context in seconds}))
        grid = [[seconds[size, context] for size in sizes] for context in contexts]
        columns = zip(*(rising(row) for row in grid), strict=True)
        # What rises along rows does so still once columns do: the regression keeps order.
        rows = zip(*(rising(column) for column in columns), strict=True)
        return cls(contexts, tuple(Curve(sizes, row) for row in rows))


def rising(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, ...]:
    """Return the nearest values that never fall (isotonic regression)."""
    # Here, since it takes long to import, and whoever only names a proposer needs none.
    from scipy.optimize import isotonic_regression

    return tuple(float(each) for each in isotonic_regression(list(values), weights=weights).x)
