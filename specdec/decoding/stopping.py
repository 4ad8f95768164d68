"""When a text ends: end tokens, stop strings, and the number of new tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from specdec.core.errors import require, require_int


class TextModel(Protocol):
    """A model that knows its tokenizer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turn token ids into text."""
        ...


@dataclass(frozen=True)
class Stopping:
    """What ends a text. `decode` turns token ids into text; only stop strings need it."""

    max_new_tokens: int = 128
    end_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_int("max_new_tokens", self.max_new_tokens, 1)
        good = all(isinstance(string, str) and string for string in self.stop_strings)
        require(good, "stop_strings", self.stop_strings, "strings that are not empty")
        assert self.decode is not None or not self.stop_strings

    @classmethod
    def of(
        cls, verifier: "TextModel", max_new_tokens: int = 128, stop_strings: Sequence[str] = ()
    ) -> "Stopping":
        """Take end tokens and decoding from the verifier."""
        return cls(max_new_tokens, verifier.end_ids, tuple(stop_strings), verifier.decode)

    def cut(
        self, output_ids: Sequence[int], new_ids: Sequence[int]
    ) -> tuple[list[int], str | None]:
        """Return the part of `new_ids` that becomes text, and why the text ends there, if it does.

        `output_ids` is what was emitted before; `new_ids` never exceed the budget.
        """
        for count, token in enumerate(new_ids, start=1):
            if token in self.end_ids:
                return list(new_ids[:count]), "eos"
            if self.stop_strings and self._stops([*output_ids, *new_ids[:count]]):
                return list(new_ids[:count]), "stop"
        return list(new_ids), None

    def _stops(self, output_ids: Sequence[int]) -> bool:
        """Whether the text so far holds a stop string that its last token completed."""
        assert self.decode is not None
        # A token is at least one byte, so a stop string lies within its length in tokens; the
        # margin is for characters that are split over tokens.
        reach = max(len(string.encode()) for string in self.stop_strings) + 8
        tail = self.decode(output_ids[-reach:])
        return any(string in tail for string in self.stop_strings)


def default_stopping(verifier: object) -> Stopping:
    """Return where a text ends unless that is told: at the verifier's own end tokens, if it has."""
    reads_text = getattr(verifier, "tokenizer", None) is not None
    return Stopping.of(cast(TextModel, verifier)) if reads_text else Stopping()


def text_of(verifier: object) -> Callable[[Sequence[int]], str] | None:
    """Return how tokens become text; None for a verifier that knows tokens only."""
    if getattr(verifier, "tokenizer", None) is None:
        return None
    return cast(TextModel, verifier).decode
