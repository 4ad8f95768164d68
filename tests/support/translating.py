"""Tables that speak other tokens than their verifier."""

from collections.abc import Sequence
from typing import Any

from specdec.core.protocols import Forward
from specdec.lm.token_bytes import spelling_of
from specdec.lm.translation import Translation
from specdec.testing.table_lm import TableLM
from tests.support.small_tokenizers import letters
from tests.support.toy import Conditional

# Three tokens each, as few as can be enumerated: one letter stands elsewhere, pairs are others.
VERIFIER = ["a", "b", "ab"]
DRAFT = ["b", "a", "ba"]


class TranslatingTable(TableLM):
    """A table that reads another model's text, and notes which tokens it has read."""

    def __init__(self, distribution: Conditional, vocab_size: int, translation: Translation):
        super().__init__(lambda tokens: distribution(tokens).log(), vocab_size)
        self.translation = translation
        self.num_read = 0

    def forward(self, rows: Sequence[int], token_ids: Any, *where: Any, **layers: Any) -> Forward:
        self.num_read += token_ids.numel()
        return super().forward(rows, token_ids, *where, **layers)

    def texts(self, row: int) -> list[int]:
        """Return the tokens in the cells of a row."""
        return [token for _, token in self._cells[row]]


def toy_translation(
    kind: str, verifier: Sequence[str] = VERIFIER, draft: Sequence[str] = DRAFT
) -> Translation:
    return Translation(
        kind, spelling_of(letters(list(verifier))), spelling_of(letters(list(draft)))
    )


def toy_draft(kind: str, distribution: Conditional) -> TranslatingTable:
    return TranslatingTable(distribution, len(DRAFT), toy_translation(kind))
