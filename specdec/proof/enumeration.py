"""Exact enumeration: the distribution of what a rule emits, without drawing a single random number.

`BranchingStream` replays a prefix of a rule's random decisions and backtracks through all others,
so that the probability of every outcome is a sum of products; a wrong rule shows as a difference
that no sample size has to resolve.
"""

from collections.abc import Callable, Hashable, Iterator
from functools import cache
from typing import TypeVar

from torch import Tensor

OutcomeT = TypeVar("OutcomeT", bound=Hashable)
PlayedT = TypeVar("PlayedT")


class BranchingStream:
    """A `Stream` that takes prescribed decisions and notes the open alternatives.

    What is no more probable than `least`, all decisions together, is no alternative.
    """

    def __init__(self, prescribed: list[int], least: float = 0.0):
        self._prescribed = prescribed
        self._least = least
        self.taken: list[int] = []
        self.open: list[list[int]] = []  # alternatives not yet tried, per decision
        self.probability = 1.0

    def accept(self, probability: float) -> bool:
        """Branch into yes and no."""
        yes = min(1.0, max(0.0, probability))
        return self._branch([1.0 - yes, yes], preferred=1) == 1

    def choose(self, weights: Tensor) -> int:
        """Branch into every token that has weight."""
        values: list[float] = weights.double().tolist()
        total = sum(values)
        if not total > 0:
            raise ValueError("chooses from weights without mass")
        return self._branch([value / total for value in values])

    def choose_each(self, weights: Tensor) -> Callable[[int], int]:
        """Branch row by row, once for each row that is asked for."""
        return cache(lambda row: self.choose(weights[row]))

    def _branch(self, probabilities: list[float], preferred: int = 0) -> int:
        least = self._least / self.probability
        possible = [index for index, value in enumerate(probabilities) if value > least]
        possible = possible or [probabilities.index(max(probabilities))]
        position = len(self.taken)
        if position < len(self._prescribed):
            decision = self._prescribed[position]
            self.open.append([])
        else:
            decision = preferred if preferred in possible else possible[0]
            self.open.append([index for index in possible if index != decision])
        self.taken.append(decision)
        self.probability *= probabilities[decision]
        return decision


def outcomes(play: Callable[[BranchingStream], OutcomeT]) -> dict[OutcomeT, float]:
    """Return the exact probability of everything that `play` can return."""
    probabilities: dict[OutcomeT, float] = {}
    for outcome, probability in plays(play):
        probabilities[outcome] = probabilities.get(outcome, 0.0) + probability
    return probabilities


def plays(
    play: Callable[[BranchingStream], PlayedT], least: float = 0.0
) -> Iterator[tuple[PlayedT, float]]:
    """Yield what each way to decide comes to, with its probability; none below `least`."""
    pending: list[list[int]] = [[]]
    while pending:
        stream = BranchingStream(pending.pop(), least)
        outcome = play(stream)
        yield outcome, stream.probability
        for position, alternatives in enumerate(stream.open):
            pending += [[*stream.taken[:position], other] for other in alternatives]
