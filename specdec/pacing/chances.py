"""How far candidates are accepted: counted per depth, of all requests and of each one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import sqrt
from operator import mul

FIRST = 0.6  # what a candidate at depth 1 is taken to be worth before anything is known
PRIOR = 2.0  # looks that this guess, or the depth above, counts as
SHARED = 24.0  # looks that all requests count as where one request is judged
SCALED = 6.0  # accepted candidates that count for a request's being like all others
SUREST = 0.98
HOPE = 0.5  # standard errors by which a rate may be better than it was found to be
KEPT = 0.998  # of the weight of a look when the next one comes: the last 500 count
KEPT_OWN = 0.98  # likewise of one request


@dataclass
class Counts:
    """Looks at candidates per depth (from 1), and how many were accepted; older ones weigh less."""

    kept: float
    tried: list[float] = field(default_factory=list[float])
    accepted: list[float] = field(default_factory=list[float])

    def note(self, depth: int, accepted: int, failed: bool) -> None:
        """Count one step that was let go down to `depth`.

        `accepted` candidates were, and the next one was refused or was missing if the step
        `failed` above `depth`; otherwise nothing is known of it.
        """
        tested = min(depth, accepted + failed)
        missing = tested - len(self.tried)
        if missing > 0:
            self.tried += [0.0] * missing
            self.accepted += [0.0] * missing
        for place in range(tested):
            self.tried[place] = self.tried[place] * self.kept + 1
            self.accepted[place] = self.accepted[place] * self.kept + (place < accepted)

    def fade(self) -> None:
        """Let what is known weigh less: time went by without a look."""
        self.tried = [each * self.kept for each in self.tried]
        self.accepted = [each * self.kept for each in self.accepted]

    def rates(self, prior: Sequence[float], weight: float) -> list[float]:  # [D] -> [D]
        """Return P(accepted at depth d | reached) with `prior` counting as `weight` looks."""
        known = len(self.tried)
        return [
            (self.accepted[d] + weight * guess) / (self.tried[d] + weight) if d < known else guess
            for d, guess in enumerate(prior)
        ]

    def scale(self, prior: Sequence[float]) -> float:
        """Return how many more are accepted here than `prior` says, at all depths together.

        Who gets deep is mostly who is good: without this, others would be believed to be as good.
        """
        pairs = zip(self.tried, prior, strict=False)
        expected = sum(number * rate for number, rate in pairs)
        return (sum(self.accepted) + SCALED) / (expected + SCALED)


class Chances:
    """Estimates P(A >= d) of a step that may draft so deep, from the steps that are past.

    The rates P(A >= d | A >= d - 1) are counted over the steps at risk. Each depth is taken to be
    like the one above until it is known, and each request like all of them, better or worse by one
    factor (empirical Bayes with fixed weights). A candidate that the proposer did not have counts
    as a refused one: what is estimated is what a step brings, and not how good its tokens are.
    """

    def __init__(self) -> None:
        self._all = Counts(KEPT)
        self._own: dict[int, tuple[str, Counts]] = {}  # by row

    def own(self, row: int, request_id: str) -> Counts:
        """Return what is known of a request; a row forgets the one before it."""
        name, counts = self._own.get(row, ("", None))
        if counts is None or name != request_id:
            counts = Counts(KEPT_OWN)
            self._own[row] = request_id, counts
        return counts

    def forget_rows(self) -> None:
        """Keep what is known of all requests together."""
        self._own = {}

    def note(self, row: int, request_id: str, depth: int, accepted: int, failed: bool) -> None:
        """Count a step of a request; see `Counts.note`."""
        self._all.note(depth, accepted, failed)
        self.own(row, request_id).note(depth, accepted, failed)

    def shared(self, max_depth: int) -> list[float]:  # [D]
        """Return the rates of all requests together, each as good as it may well be.

        A part of a standard error is added: what is not known well is worth a look, and what is
        known is not given up for bad luck (Auer et al. 2002, upper confidence bounds).
        """
        found: list[float] = []
        guess = FIRST
        for d in range(max_depth):
            weight = PRIOR
            if d < len(self._all.tried):
                weight = self._all.tried[d] + PRIOR
                guess = (self._all.accepted[d] + PRIOR * guess) / weight
            found.append(min(SUREST, guess + HOPE * sqrt(guess * (1 - guess) / weight)))
        return found

    def expected(
        self, row: int, request_id: str, shared: Sequence[float]
    ) -> list[float]:  # [D] -> [D + 1]
        """Return E[A] of a step of a request that may go down to depth 0, 1, ..., D."""
        own = self.own(row, request_id)
        scale = own.scale(shared)
        rates = own.rates([min(SUREST, scale * rate) for rate in shared], SHARED)
        return [0.0, *accumulate(accumulate(rates, mul))]
