"""Prompt lookup: what followed the last few tokens when they occurred before."""

from collections.abc import Sequence

from specdec.core.errors import require, require_int
from specdec.core.tree import CandidateTree
from specdec.core.values import CandidateSource, Context, Draw, Layer, Proposal, Verdict


class NGram:
    """Copy up to gamma tokens from behind the latest earlier occurrence of the last n tokens.

    Tries n = max_ngram first, then shorter ones down to min_ngram (Saxena 2023, prompt lookup
    decoding). Candidates are point masses, so the text stays lossless at any temperature.
    """

    source = CandidateSource.TEXT
    draw = Draw.DETERMINISTIC
    layers: Sequence[Layer] = ()

    def __init__(self, gamma: int, max_ngram: int = 3, min_ngram: int = 1):
        require_int("gamma", gamma, 1)
        require_int("min_ngram", min_ngram, 1)
        require_int("max_ngram", max_ngram, 1)
        require(
            min_ngram <= max_ngram,
            "min_ngram",
            min_ngram,
            f"at most max_ngram={max_ngram}",
        )
        self.max_depth = gamma
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._indices: dict[int, NGramIndex] = {}

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Forget every row."""
        self._indices = {}

    def reset(self, contexts: Sequence[Context]) -> None:
        """Start an empty index for each new request; it fills while it is asked."""
        for context in contexts:
            self._indices[context.row] = NGramIndex(self._sizes)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Copy what followed last time."""
        return [self._proposal(context) for context in contexts]

    def _proposal(self, context: Context) -> Proposal:
        text = context.token_ids
        start, matched = self._indices[context.row].find(text)
        draft_ids = text[start : start + min(self.max_depth, context.max_depth)]
        chain = CandidateTree.chain(text[-1], draft_ids)
        return Proposal(chain, num_draft_calls=0, matched=matched or None)

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """The index reads the committed tokens when it is next asked."""

    def rewind(self, contexts: Sequence[Context]) -> None:
        """Forget the n-grams that are no longer followed by a token."""
        for context in contexts:
            self._indices[context.row].rewind(len(context.token_ids))


class NGramIndex:
    """Where each n-gram of a growing text was last seen to be followed by a token."""

    def __init__(self, sizes: Sequence[int]):
        self._sizes = sizes
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> position behind it
        self._before: list[tuple[int, tuple[int, ...], int | None]] = []  # what entries were
        self._indexed = 0

    def find(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """Return the position behind the latest earlier occurrence of the longest known suffix.

        And how many tokens that suffix has. 0: it is not known, and the position is the end.
        """
        # The n-grams that end at the last token are not indexed yet: nothing follows them.
        for position in range(self._indexed + 1, len(token_ids)):
            for size in self._sizes:
                if position >= size:
                    ngram = tuple(token_ids[position - size : position])
                    self._before.append((position, ngram, self._next.get(ngram)))
                    self._next[ngram] = position
        self._indexed = max(self._indexed, len(token_ids) - 1)
        for size in self._sizes:
            if len(token_ids) > size:
                found = self._next.get(tuple(token_ids[-size:]))
                if found is not None:
                    return found, size
        return len(token_ids), 0

    def rewind(self, length: int) -> None:
        """Go back to the first tokens of the text, of which the last may be another one now."""
        while self._before and self._before[-1][0] >= length:
            _, ngram, position = self._before.pop()
            if position is None:
                del self._next[ngram]
            else:
                self._next[ngram] = position
        self._indexed = min(self._indexed, max(0, length - 1))
