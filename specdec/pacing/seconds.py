"""What steps take: measured while decoding, or read from a file of `specdec-costs`."""

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Protocol

from specdec.core.errors import UserError
from specdec.core.protocols import TreePolicy
from specdec.replaying.costs import ProposerKey, TreeShape
from specdec.replaying.costs_file import read_costs
from specdec.tree.fixed import is_chain

WINDOW = 15  # of the last seconds of a size, whose median counts: a shared machine stalls at times
STALLED = 2.0  # times as long as usual, or longer: counts as this
ENOUGH = 3  # samples of a size before it counts
NEAR = 32  # contexts that are as near to each other as this are one


class StepSeconds(Protocol):
    """The seconds of a step of all B requests in flight; None: not known yet."""

    @property
    def is_measured(self) -> bool:
        """Whether steps have to be tried to be known."""
        ...

    @property
    def reach(self) -> float:
        """The deepest draft of which anything can be said."""
        ...

    def propose(self, num_rows: int, depth: int) -> float | None:
        """Drafting, to a depth."""
        ...

    def read(self, num_rows: int, num_tokens: float, context: float) -> float | None:
        """All else: the verifier reads so many tokens a row, the rule decides, the text goes on."""
        ...

    def num_plain(self, num_rows: int) -> int:
        """How many plain steps of about so many requests were timed."""
        ...

    def note(
        self, num_rows: int, depth: int, num_tokens: int, propose: float | None, rest: float
    ) -> None:
        """Take note of a step; `propose` is None where its drafting is like no other's."""
        ...

    def booked(
        self, num_rows: int, depth: int, num_tokens: int, context: float, clock: float
    ) -> float | None:
        """Return what a step counts for that took so many seconds by the clock; None: nothing."""
        ...


class Sizes:
    """The last seconds of each size, and what lines between their medians say of the others.

    Less is never more: what stalled looks dear, and what is larger says how dear it is at most.
    Beyond the sizes that are known the lines go on, below them no lower than in proportion. Beyond
    a size that is the only one more may take no longer: that is worth a look, which then tells.
    """

    def __init__(self) -> None:
        self.medians: dict[int, float] = {}
        self._samples: dict[int, list[float]] = {}
        self._points: list[tuple[int, float]] = []  # by size, no longer for less
        self._lines: dict[float, float] = {}  # what was read off already

    def note(self, size: int, seconds: float) -> None:
        """Take note of one."""
        some = self._samples.setdefault(size, [])
        some.append(seconds)
        if len(some) > WINDOW:
            del some[0]
        # Of a few the least: what was hardly seen is worth another look.
        found = sorted(some)[len(some) // 2 if len(some) >= ENOUGH else 0]
        if found != self.medians.get(size):
            self.medians[size] = found
            self._lines = {}
            backwards = sorted(self.medians.items(), reverse=True)
            least = accumulate((median for _, median in backwards), min)
            self._points = [(s, low) for (s, _), low in zip(backwards, least, strict=True)][::-1]

    def count(self, size: int) -> int:
        """Return how many are remembered of a size."""
        return len(self._samples.get(size, ()))

    def at(self, size: float) -> float | None:
        """Return the seconds of a size; None: nothing is known at all."""
        if size not in self._lines and self._points:
            self._lines[size] = self._read_off(size)
        return self._lines.get(size)

    def _read_off(self, size: float) -> float:
        points = self._points
        if len(points) == 1:
            return points[0][1] * min(1.0, size / points[0][0])
        after = bisect_left(points, size, 1, len(points) - 1, key=lambda point: point[0])
        (low, first), (high, second) = points[after - 1], points[after]
        found = first + (second - first) * (size - low) / (high - low)
        return max(found, first * size / low) if size < low else found


class MeasuredSeconds:
    """Medians of the decoder's own seconds, for each number of requests in flight.

    What was not tried lies on lines between what was. For a number of requests that is new, the
    nearest known number stands in: which length is the best hardly depends on one request more.
    """

    is_measured = True

    def __init__(self) -> None:
        self._propose: dict[int, Sizes] = {}
        self._read: dict[int, Sizes] = {}
        self._deepest = 1

    @property
    def reach(self) -> float:
        """Twice as deep as was tried: so a wrong guess of what is deeper costs one step."""
        return 2.0 * self._deepest

    def propose(self, num_rows: int, depth: int) -> float | None:
        """Return the median of drafting to a depth; none takes no time."""
        near = _nearest(self._propose, num_rows)
        if near is None:
            return None
        return self._propose[near].at(depth) if depth > 0 else 0.0

    def read(self, num_rows: int, num_tokens: float, context: float) -> float | None:
        """Return the median of the rest of a step."""
        some = self._read.get(num_rows)
        if some is None or some.count(1) < ENOUGH:
            known = {rows: each for rows, each in self._read.items() if each.count(1) >= ENOUGH}
            near = _nearest(known or self._read, num_rows)
            if near is None:
                return None
            some = self._read[near]
        # What was not read yet may take no longer: that is worth a look, which then tells.
        return some.at(min(num_tokens, max(some.medians)))

    def num_plain(self, num_rows: int) -> int:
        """How many are remembered of about as many requests: of up to twice or half as many."""
        return max(
            (
                each.count(1)
                for rows, each in self._read.items()
                if max(rows, num_rows) <= 2 * min(rows, num_rows)
            ),
            default=0,
        )

    def note(
        self, num_rows: int, depth: int, num_tokens: int, propose: float | None, rest: float
    ) -> None:
        """Remember the last few."""
        self._deepest = max(self._deepest, depth)
        if depth > 0 and propose is not None:
            self._propose.setdefault(num_rows, Sizes()).note(depth, propose)
        self._read.setdefault(num_rows, Sizes()).note(num_tokens, rest)

    def booked(
        self, num_rows: int, depth: int, num_tokens: int, context: float, clock: float
    ) -> float | None:
        """The clock's, but not much more than usual: a machine that stalls does so in any step."""
        propose, read = self.propose(num_rows, depth), self.read(num_rows, num_tokens, context)
        return None if propose is None or read is None else min(clock, STALLED * (propose + read))


def _nearest(known: Mapping[int, Sizes], num_rows: int) -> int | None:
    if num_rows in known:
        return num_rows
    return min(known, key=lambda rows: abs(rows - num_rows), default=None)


class FiledSeconds:
    """Seconds from a file of `specdec-costs`: with them decoding is the same every time.

    Those of a request are the file's, however many are in flight.

    Args:
        path: of the file.
        draft: what the proposer is called or known by there.
        tree: that it grows; None: it has a way of its own.

    Raises:
        UserError: there is no such file, or nothing about this proposer in it.
    """

    is_measured = False
    reach = inf

    def __init__(self, path: str, draft: str, tree: TreePolicy | None):
        self._costs = read_costs(Path(path))
        known = {each.name: key for key, each in self._costs.drafts.items()}
        key = known.get(draft, draft)
        if key not in self._costs.drafts:
            raise UserError(
                f"costs_path={path!r}: nothing about draft={draft!r}; there are {', '.join(known)}"
            )
        self._draft = ProposerKey(draft, key)
        self._tree = tree
        self._rests: dict[tuple[int, int], float] = {}

    def propose(self, num_rows: int, depth: int) -> float:
        """Return what drafting to a depth takes."""
        if depth == 0:
            return 0.0
        shape = TreeShape.of(self._tree, depth, depth)
        context = self._costs.drafts[self._draft.known_by].context
        return num_rows * self._costs.of_step(self._draft, shape, context).propose

    def read(self, num_rows: int, num_tokens: float, context: float) -> float:
        """Return what the rest of a step takes, by a line between whole numbers of tokens."""
        low = int(num_tokens)
        found = self._rest(low, context)
        if num_tokens > low:
            found += (self._rest(low + 1, context) - found) * (num_tokens - low)
        return num_rows * found

    def _rest(self, num_tokens: int, context: float) -> float:
        near = round(context / NEAR)
        if (num_tokens, near) not in self._rests:
            branches = num_tokens > 2 and not (self._tree is None or is_chain(self._tree))
            found = self._costs.of_step(
                self._draft, TreeShape(num_tokens, branches, ()), near * NEAR
            )
            self._rests[num_tokens, near] = found.verify + found.other
        return self._rests[num_tokens, near]

    def num_plain(self, num_rows: int) -> int:
        """None, and none has to be."""
        return 0

    def note(
        self, num_rows: int, depth: int, num_tokens: int, propose: float | None, rest: float
    ) -> None:
        """Nothing is measured."""

    def booked(
        self, num_rows: int, depth: int, num_tokens: int, context: float, clock: float
    ) -> float:
        """Those of the file, so that no clock decides anything."""
        return self.propose(num_rows, depth) + self.read(num_rows, num_tokens, context)
