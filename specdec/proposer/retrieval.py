"""What followed the end of the text in a datastore: retrieval-based drafting."""

from collections.abc import Sequence

from specdec.core.values import Context, Verdict
from specdec.proposer.datastore import Datastore
from specdec.proposer.lookup import Lookup, Matched


class Retrieval(Lookup):
    """Propose what follows the end of the text in a datastore (REST, arXiv 2311.08252).

    The longest match counts; its continuations are merged into a tree by how frequent they are. The
    text itself is not looked at: `Suffix` does that.

    Args:
        datastore: the texts; `Retrieval.load` opens those at a path.
        gamma: the deepest draft token.
        min_matched: the least tokens of a match.
        depth_per_matched: draft tokens for each token of the match; None: gamma.
        num_nodes: draft tokens of a tree; None: a chain of what follows most often.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        datastore: Datastore,
        gamma: int,
        min_matched: int = 2,
        depth_per_matched: float | None = None,
        num_nodes: int | None = None,
    ):
        super().__init__(gamma, min_matched, depth_per_matched, num_nodes)
        self._datastore = datastore

    @classmethod
    def load(
        cls,
        path: str | None,
        gamma: int,
        min_matched: int = 2,
        depth_per_matched: float | None = None,
        num_nodes: int | None = None,
    ) -> "Retrieval":
        """Open a datastore.

        Raises:
            UserError: there is none, or a number is out of its range.
        """
        datastore = Datastore.open(path, "path")
        return cls(datastore, gamma, min_matched, depth_per_matched, num_nodes)

    @property
    def tokenizer_digest(self) -> str:
        """Of what made the tokens of the datastore."""
        return self._datastore.tokenizer_digest

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Nothing is kept of a text."""

    def reset(self, contexts: Sequence[Context]) -> None:
        """Nothing is kept of a request."""

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """The datastore stays as it is."""

    def _matches(self, context: Context) -> list[Matched]:
        found = self._datastore.find(context.token_ids, self._min_matched, self.max_depth)
        return [] if found is None else [found]
