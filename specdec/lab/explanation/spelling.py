"""Tokens as a reader sees them: quoted, with spaces and line ends that show."""

import json
from collections.abc import Sequence
from typing import Any

from specdec.lm.hf import HFCausalLM
from specdec.results.token_view import PART, spelt_out

BEFORE = 60  # characters of the text before a step


class Spelt:
    """The tokens of a verifier's vocabulary, with or without a tokenizer."""

    def __init__(self, verifier: HFCausalLM):
        self._tokenizer: Any = verifier.tokenizer
        self._show = verifier.show

    def token(self, token_id: int) -> str:
        """Return one token in quotes; the bytes of one that is no whole character."""
        if self._tokenizer is None:
            return f"<{token_id}>"
        text = self._show([token_id])
        if text and PART not in text:
            return json.dumps(text, ensure_ascii=False)
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        return f"<{token_id}>" if piece is None else f'"{spelt_out(piece)}"'

    def tokens(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Return each of some tokens."""
        return tuple(map(self.token, token_ids))

    def end_of(self, token_ids: Sequence[int]) -> str:
        """Return the last characters of a text."""
        if self._tokenizer is None:
            return " ".join(self.tokens(token_ids[-BEFORE // 6 :]))
        return self._show(token_ids)[-BEFORE:]

    def text(self, token_ids: Sequence[int]) -> str:
        """Return a whole text."""
        return (
            " ".join(self.tokens(token_ids)) if self._tokenizer is None else self._show(token_ids)
        )
