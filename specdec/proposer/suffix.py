"""The longest suffix of the text that occurred before, in the text or in a corpus."""

from collections.abc import Sequence
from itertools import islice

from specdec.core.values import Context, Verdict
from specdec.proposer.automaton import SuffixAutomaton
from specdec.proposer.datastore import Datastore
from specdec.proposer.lookup import Lookup, Matched

MOST_MATCHES = 4  # suffixes that a tree is filled from


class Suffix(Lookup):
    """Propose what follows the longest suffix of the text that is found again, however long it is.

    The prompt and the output so far are a suffix automaton, which each committed token extends (SAM
    decoding, arXiv 2411.10666; SuffixDecoding, arXiv 2411.04975). With a corpus, the longer of both
    matches counts, and the text's own if they are equally long.

    Args:
        gamma: the deepest draft token.
        min_matched: the least tokens of a match.
        depth_per_matched: draft tokens for each token of the match; None: gamma.
        num_nodes: draft tokens of a tree of what is frequent; None: a chain.
        corpus: further texts; `Suffix.load` opens those at a path.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        gamma: int,
        min_matched: int = 1,
        depth_per_matched: float | None = None,
        num_nodes: int | None = None,
        corpus: Datastore | None = None,
    ):
        super().__init__(gamma, min_matched, depth_per_matched, num_nodes)
        self._corpus = corpus
        self._texts: dict[int, SuffixAutomaton] = {}

    @classmethod
    def load(
        cls,
        gamma: int,
        min_matched: int = 1,
        depth_per_matched: float | None = None,
        num_nodes: int | None = None,
        corpus_path: str | None = None,
    ) -> "Suffix":
        """Open the corpus at a path, a datastore, if there is one.

        Raises:
            UserError: there is no datastore, or a number is out of its range.
        """
        corpus = None if corpus_path is None else Datastore.open(corpus_path, "corpus_path")
        return cls(gamma, min_matched, depth_per_matched, num_nodes, corpus)

    @property
    def tokenizer_digest(self) -> str | None:
        """Of what made the tokens of the corpus; None: there is none."""
        return None if self._corpus is None else self._corpus.tokenizer_digest

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Forget every text."""
        self._texts = {}

    def reset(self, contexts: Sequence[Context]) -> None:
        """Start an empty automaton for each new request; it is extended while it is asked."""
        for context in contexts:
            self._texts[context.row] = SuffixAutomaton()

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """The committed tokens are read when candidates are next asked for."""

    def _matches(self, context: Context) -> list[Matched]:
        text = self._texts[context.row]
        text.extend(context.token_ids[text.num_tokens :])
        found = list(islice(text.matches(), MOST_MATCHES))
        if self._corpus is not None:
            longest = found[0].length if found else 0
            least = max(longest + 1, self._min_matched)
            match = self._corpus.find(context.token_ids, least, self.max_depth)
            if match is not None:
                return [match, *found]
        return found
