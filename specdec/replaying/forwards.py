"""The verifier's forward over tokens and context: seconds, bytes, and how near the floor it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from specdec.replaying.curves import Surface


class Shape(NamedTuple):
    """What a row of a forward reads."""

    branches: bool  # whether it is no chain
    num_tokens: int  # the root and the draft tokens
    context: int  # cells that are cached before


@dataclass(frozen=True)
class TimedForward:
    """A forward of B rows of one shape, as it was timed."""

    shape: Shape
    seconds: float  # median; of the whole batch
    num_bytes: int  # that it must move: the weights, and keys and values of all rows
    # Distinct ones of a sparse layer, on average, that all rows together take; None: it is dense.
    experts: float | None = None


@dataclass(frozen=True)
class Forwards:
    """Forwards over a grid: every number of tokens behind every context."""

    batch: int  # B
    bytes_per_second: float  # that a copy moves on this device, read and written
    points: tuple[TimedForward, ...]

    @cached_property
    def chain(self) -> Surface:
        """Seconds of a chain, for one request."""
        return self._surface(False)

    @cached_property
    def tree(self) -> Surface:
        """Seconds of a tree, for one request; trees of two tokens are chains."""
        return self._surface(True)

    def _surface(self, branches: bool) -> Surface:
        found = {
            (each.shape.num_tokens, each.shape.context): each.seconds / self.batch
            for each in self.points
            if each.shape.branches == branches
        }
        return Surface.of(found)

    def floor(self, point: TimedForward) -> float:
        """Return the seconds that a copy of as many bytes takes."""
        return point.num_bytes / self.bytes_per_second

    def ratio(self, point: TimedForward) -> float:
        """Return how many times the floor a forward takes; below 1 where caches hold the weights.

        Weights that fit the processor's own caches are not read from memory again.
        """
        return point.seconds / self.floor(point)

    def to_row(self) -> dict[str, Any]:
        """Return plain values, with what follows from them for whoever reads the file."""
        rows = [
            {
                **each.shape._asdict(),
                "seconds": each.seconds,
                "num_bytes": each.num_bytes,
                "experts": each.experts,
                "floor_seconds": self.floor(each),
                "ratio": self.ratio(each),
            }
            for each in self.points
        ]
        return {**asdict(self), "points": rows}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Forwards":
        """Read what `to_row` returned.

        Raises:
            ValueError: a number is none that a machine has, or the points are no grid.
        """
        points = tuple(_point(each) for each in row["points"])
        found = cls(int(row["batch"]), float(row["bytes_per_second"]), points)
        numbers = [found.bytes_per_second, *(each.seconds for each in points)]
        if found.batch < 1 or not all(0 < each < math.inf for each in numbers):
            raise ValueError("forwards: a number is not above 0")
        for branches in (False, True):
            if not is_grid([each.shape for each in points if each.shape.branches == branches]):
                raise ValueError("forwards: not every number of tokens behind every context")
        return found


def is_grid(shapes: Sequence[Shape]) -> bool:
    """Whether there is every number of tokens behind every context, and there are any."""
    pairs = [(each.num_tokens, each.context) for each in shapes]
    sizes, contexts = {size for size, _ in pairs}, {context for _, context in pairs}
    return 0 < len(pairs) == len(set(pairs)) == len(sizes) * len(contexts)


def _point(row: Mapping[str, Any]) -> TimedForward:
    shape = Shape(bool(row["branches"]), int(row["num_tokens"]), int(row["context"]))
    experts = row.get("experts")  # which older files do not have
    experts = None if experts is None else float(experts)
    return TimedForward(shape, float(row["seconds"]), int(row["num_bytes"]), experts)
