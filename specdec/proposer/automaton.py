"""A suffix automaton of a growing text, with how often each of its places occurred, and when."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from specdec.proposer.lookup import Matched, Place

START = 0  # the state of the empty sequence
# Occurrences are counted of this many of a text's last suffixes, the longest first: a bound on the
# work for a token, which only texts like "a a a a a" come near.
MOST_COUNTED = 64


class SuffixAutomaton:
    """All sequences of tokens that occur in a text, as states; a token is added in O(1), amortised.

    Blumer et al. (1985). A state stands for all sequences that end at the same places of the text;
    its link leads to the longest suffix that ends at more. So the link of the whole text's state
    is the longest suffix that occurred before: the match needs no search of its own (as in SAM
    decoding, arXiv 2411.10666, section 3.2).
    """

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]  # of the longest sequence of a state
        self._count = [0]  # of the places where it ends
        self._latest = [-1]  # the last one of them
        self._last = START
        self.num_tokens = 0

    @property
    def num_states(self) -> int:
        """At most two for each token."""
        return len(self._next)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the text."""
        for token in token_ids:
            self._add(token)

    def _add(self, token: int) -> None:
        state, place = self._new(self._length[self._last] + 1, {}, START), self._last
        while place >= 0 and token not in self._next[place]:
            self._next[place][token] = state
            place = self._link[place]
        if place >= 0:
            self._link[state] = self._ending_at(place, token)
        self._last = state
        self._count_suffixes()
        self.num_tokens += 1

    def _new(self, length: int, following: dict[int, int], link: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._count.append(0)
        self._latest.append(-1)
        return len(self._next) - 1

    def _ending_at(self, place: int, token: int) -> int:
        """Return the state whose longest sequence is that of a place and the token behind it."""
        there = self._next[place][token]
        length = self._length[place] + 1
        if self._length[there] == length:
            return there
        # Its longer sequences do not end here: they are parted from those that do.
        shorter = self._new(length, dict(self._next[there]), self._link[there])
        self._count[shorter], self._latest[shorter] = self._count[there], self._latest[there]
        self._link[there] = shorter
        while place >= 0 and self._next[place].get(token) == there:
            self._next[place][token] = shorter
            place = self._link[place]
        return shorter

    def _count_suffixes(self) -> None:
        state = self._last
        for _ in range(MOST_COUNTED):
            if state == START:
                return
            self._count[state] += 1
            self._latest[state] = self.num_tokens
            state = self._link[state]

    def matches(self) -> Iterator[Matched]:
        """Yield the suffixes of the text that occurred before, the longest first."""
        state = self._link[self._last]
        while state > START:
            yield Matched(self._length[state], _SuffixState(self, state))
            state = self._link[state]

    def following(self, state: int) -> list[tuple[int, int, Place]]:
        """Return what followed a state; of what did equally often, the latest first."""
        found = self._next[state].items()
        ranked = sorted(found, key=lambda each: (-self._count[each[1]], -self._latest[each[1]]))
        return [(token, self._count[there], _SuffixState(self, there)) for token, there in ranked]


class _SuffixState(NamedTuple):
    of: SuffixAutomaton
    number: int

    def goes_on(self) -> Sequence[tuple[int, int, Place]]:
        return self.of.following(self.number)
