"""How many candidates there are to read, when steps may draft to some depth."""

from collections.abc import Sequence

KEPT = 0.97  # of the weight of a step when the next one comes


class Offers:
    """How often steps have any candidates, and how many down to each depth where they have.

    A draft model always has some, n-grams only where the text repeats itself; trees have several
    on a level. With B requests in flight, what counts is the largest proposal: rows are padded.
    """

    def __init__(self, max_depth: int):
        # A chain of each depth, once seen, is what is believed at first.
        self._tokens = [float(depth) for depth in range(max_depth + 1)]
        self._weights = [1.0] * (max_depth + 1)
        self._some, self._weight = 1.0, 1.0

    def note(self, depth: int, counts: Sequence[int]) -> None:
        """Take note of a step that was let go to `depth`: candidates down to depth 0, 1, ..."""
        largest = counts[-1]
        self._some = self._some * KEPT + (largest > 0)
        self._weight = self._weight * KEPT + 1
        if largest == 0:
            return
        for d in range(1, min(depth, len(self._tokens) - 1) + 1):
            number = counts[min(d, len(counts) - 1)]
            self._tokens[d] = self._tokens[d] * KEPT + number
            self._weights[d] = self._weights[d] * KEPT + 1

    @property
    def share(self) -> float:
        """How many of the steps that ask have any candidates."""
        return self._some / self._weight

    def tokens(self, depth: int) -> float:
        """Return how many candidates there are down to a depth, where there are any."""
        return self._tokens[depth] / self._weights[depth]
