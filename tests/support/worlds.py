"""Worlds of known rates and costs, in which paces can be held to the best fixed depth."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import mul

from specdec.core.protocols import Pace
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Context, Proposal, Verdict
from specdec.recording.texts import Text
from specdec.replaying.costs import DRAWN, Costs, DraftCosts, ProposerKey
from specdec.replaying.curves import Curve
from specdec.replaying.forwards import Forwards, Shape, TimedForward
from specdec.replaying.paced import Course, Player
from tests.support.paces import Scripted

DRAFT = ProposerKey("draft_model mine", "0123")
MAX_DEPTH = 8
DEPTHS = (0, 1, 2, 3, 4, 6, 8)
Rate = Callable[[int, int], float]  # of a text by its number, and of a place in it


def world(level: float, token: float, batch: int = 1) -> Costs:
    """Return costs in plain steps: of a level of the draft, and of one more token to read."""
    sizes = (1, 2, MAX_DEPTH + 1)
    points = [
        TimedForward(Shape(branches, size, 100), batch * (1 + token * (size - 1)), 1000)
        for branches in (False, True)
        for size in (sizes[1:] if branches else sizes)
    ]
    draft = DraftCosts(DRAFT.name, 0.0, {DRAWN: Curve((1,), (level,))}, 1.0, Curve((1,), (0.0,)))
    plain = DraftCosts("none", 0.0, {}, 1.0, Curve((1,), (0.0,)))
    drafts = {DRAFT.known_by: draft, "4567": plain}
    return Costs({"batch": batch}, Forwards(batch, 1.0, tuple(points)), drafts)


def courses(rate: Rate, number: int = 24, length: int = 200) -> list[Course]:
    """Return texts whose candidates are accepted at a rate each; drafts are always there."""
    found: list[Course] = []
    for text in range(number):
        rows = [
            [*accumulate([1.0] + [rate(text, place)] * MAX_DEPTH, mul)] for place in range(length)
        ]
        ids = tuple(range(length))
        made = Text(f"{text:03d}", "", 0, (0, 1), ids, (), "length", length)
        offered = [min(MAX_DEPTH, length - place - 1) for place in range(length)]
        found.append(Course(made, offered, dict.fromkeys(range(1, MAX_DEPTH + 1), rows)))
    return found


def seconds(traces: Sequence[Trace]) -> float:
    """Add up the seconds of all steps."""
    return sum(
        step.propose_seconds + step.verify_seconds + step.other_seconds
        for trace in traces
        for step in trace.steps
    )


def played(costs: Costs, some: Sequence[Course], pace: Pace, seed: int = 0) -> list[Trace]:
    return Player(costs, DRAFT, Sampling(), True, seed).play(some, pace, MAX_DEPTH)


class Noisy:
    """A pace whose clock is another at each step by 5 %, and stalls in one of a hundred."""

    def __init__(self, pace: Pace, seed: int) -> None:
        self._pace, self._random = pace, random.Random(seed)

    @property
    def min_confidence(self) -> float:
        return self._pace.min_confidence

    def open(self, max_depth: int) -> None:
        self._pace.open(max_depth)

    def depths(self, contexts: Sequence[Context]) -> Sequence[int]:
        return self._pace.depths(contexts)

    def learn(
        self,
        contexts: Sequence[Context],
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        seconds: Mapping[str, float],
    ) -> None:
        shown = {name: self._noise() * value for name, value in seconds.items()}
        self._pace.learn(contexts, proposals, verdicts, shown)

    def _noise(self) -> float:
        stall = 3.0 if self._random.random() < 0.01 else 1.0
        return stall * self._random.lognormvariate(0, 0.05)


def fixed(costs: Costs, some: Sequence[Course]) -> dict[int, float]:
    """Return the seconds of each fixed depth."""

    def held(depth: int) -> Pace:
        return Scripted(lambda context, accepted: depth)

    return {depth: seconds(played(costs, some, held(depth))) for depth in DEPTHS}
