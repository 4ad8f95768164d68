"""N-grams of the text, and of the candidates that were not accepted: a lookahead pool."""

from collections.abc import Sequence
from itertools import takewhile

from specdec.core.errors import require, require_int
from specdec.core.tree import CandidateTree
from specdec.core.values import CandidateSource, Context, Draw, Layer, Proposal, Verdict
from specdec.proposer.ngram import NGramIndex


class Pool:
    """Copy what followed the last n tokens: in the text, or in candidates that were refused.

    A draft that goes wrong at one token is often right again some tokens later (lookahead decoding,
    arXiv 2402.02057, keeps such n-grams in a pool). After each step the pool takes of every path of
    the candidate tree, from the root to a leaf, the n-grams that a refused token follows, and up to
    gamma tokens behind each; the tokens before the path count as its beginning. A newer entry
    replaces an older one of the same n-gram, and beyond `size` entries the oldest go. Nothing else
    enters: what the verifier would have said after a refused token reaches no proposer.

    The longest n-gram wins, and the text where both have one. Its own candidates are copies, of
    which little is to be learnt; as a part of `hybrid` it sees those of the other parts, too.

    Args:
        gamma: draft tokens of a step.
        max_ngram: tokens of an n-gram, at most.
        min_ngram: tokens of an n-gram, at least.
        size: entries of the pool of a request.

    Raises:
        UserError: a number is out of its range.
    """

    source = CandidateSource.TEXT
    draw = Draw.DETERMINISTIC
    layers: Sequence[Layer] = ()

    def __init__(self, gamma: int, max_ngram: int = 3, min_ngram: int = 1, size: int = 10_000):
        require_int("gamma", gamma, 1)
        require_int("min_ngram", min_ngram, 1)
        require_int("max_ngram", max_ngram, 1)
        require_int("size", size, 1)
        expected = f"at most max_ngram={max_ngram}"
        require(min_ngram <= max_ngram, "min_ngram", min_ngram, expected)
        self.max_depth = gamma
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._size = size
        self._texts: dict[int, NGramIndex] = {}
        self._refused: dict[int, _Refused] = {}
        self._proposed: dict[int, tuple[Proposal, int]] = {}  # behind how many tokens

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Forget every row."""
        self._texts, self._refused, self._proposed = {}, {}, {}

    def reset(self, contexts: Sequence[Context]) -> None:
        """Start an empty index and an empty pool for each new request."""
        for context in contexts:
            self._texts[context.row] = NGramIndex(self._sizes)
            self._refused[context.row] = _Refused(self._sizes, self.max_depth, self._size)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Copy what followed last time, or would have."""
        found = [self._proposal(context) for context in contexts]
        for context, proposal in zip(contexts, found, strict=True):
            self._proposed[context.row] = proposal, len(context.token_ids)
        return found

    def _proposal(self, context: Context) -> Proposal:
        text, depth = context.token_ids, min(self.max_depth, context.max_depth)
        start, in_text = self._texts[context.row].find(text)
        behind, in_pool = self._refused[context.row].find(text)
        if in_text >= in_pool:
            behind = tuple(text[start : start + depth])
        chain = CandidateTree.chain(text[-1], behind[:depth])
        return Proposal(chain, num_draft_calls=0, matched=max(in_text, in_pool) or None)

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Put what was refused of its own candidates into the pool."""
        drafted = [context for context in contexts if context.row in self._proposed]
        own = [self._proposed.pop(context.row) for context in drafted]
        self.look_on(drafted, [each for each, _ in own], [start for _, start in own])

    def look_on(
        self, contexts: Sequence[Context], proposals: Sequence[Proposal], starts: Sequence[int]
    ) -> None:
        """Put what was refused into the pool, of anybody's candidates."""
        for context, proposal, start in zip(contexts, proposals, starts, strict=True):
            self._refused[context.row].learn(context.token_ids, proposal.tree, start)


class _Refused:
    """What stands behind n-grams of refused paths."""

    def __init__(self, sizes: Sequence[int], length: int, most: int):
        self._sizes = sizes  # the longest first
        self._length = length  # of what is kept behind each
        self._most = most
        self._behind: dict[tuple[int, ...], tuple[int, ...]] = {}  # the newest last

    def find(self, text: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """Return what is behind the last n tokens of a text, and n; 0: nothing is."""
        for size in self._sizes:
            found = self._behind.get(tuple(text[-size:])) if len(text) >= size else None
            if found is not None:
                return found, size
        return (), 0

    def learn(self, text: Sequence[int], tree: CandidateTree, start: int) -> None:
        """Take the paths of a tree that the text did not follow; its root was token `start - 1`."""
        before = tuple(text[max(0, start - self._sizes[0]) : start])
        for leaf, children in enumerate(tree.children):
            path = (
                tuple(tree.token_ids[node] for node in tree.path_to(leaf)) if not children else ()
            )
            accepted = _shared(path, text[start : start + len(path)])
            for place in range(len(before) + accepted, len(before) + len(path)):
                self._take(before + path, place)
        while len(self._behind) > self._most:
            del self._behind[next(iter(self._behind))]

    def _take(self, token_ids: tuple[int, ...], place: int) -> None:
        """Keep what stands at a place, for the n-grams that end before it."""
        for size in self._sizes:
            if place >= size:
                key = token_ids[place - size : place]
                self._behind.pop(key, None)  # what is newest stands last
                self._behind[key] = token_ids[place : place + self._length]


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in alike)
