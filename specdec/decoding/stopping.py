"""When a text ends: end tokens, stop strings, and the number of new tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from specdec.core.errors import require, require_bool, require_int
from specdec.core.narrowing import is_sequence
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Proposal

MARGIN = 8  # characters


class TextModel(Protocol):
    """A model that knows its tokenizer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        ...

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end a text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turn token ids into text, without special tokens."""
        ...

    def show(self, token_ids: Sequence[int]) -> str:
        """Turn token ids into text, special tokens included."""
        ...


@dataclass(frozen=True)
class Stopping:
    """What ends a text.

    Args:
        max_new_tokens: of a text, at most.
        end_ids: tokens that end a text and stay in it.
        stop_strings: strings that end a text.
        decode: turns token ids into the text that is the result.
        show: the same for stop strings, special tokens included; None: `decode`.

    Raises:
        UserError: a number is out of its range, or a string is empty.
    """

    max_new_tokens: int = 128
    end_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)
    show: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_int("max_new_tokens", self.max_new_tokens, 1)
        _require_strings(self.stop_strings)
        assert self.show or self.decode or not self.stop_strings

    @classmethod
    def of(
        cls,
        verifier: "TextModel",
        max_new_tokens: int = 128,
        stop_strings: Sequence[str] | None = None,
        ignore_eos: bool = False,
    ) -> "Stopping":
        """Take end tokens, stop strings unless they are given, and decoding from the verifier.

        With `ignore_eos` end tokens are tokens like any other.

        Raises:
            UserError: stop strings of a verifier that knows tokens only, or none of them.
        """
        require_bool("ignore_eos", ignore_eos)
        listed = stop_strings is None or is_sequence(stop_strings)
        require(listed, "stop_strings", stop_strings, 'a list, ["END"]')
        end_ids = frozenset[int]() if ignore_eos else verifier.end_ids
        strings = verifier.stop_strings if stop_strings is None else tuple(stop_strings)
        decode = text_of(verifier)
        if decode is None:
            expected = "none: the verifier has no tokenizer that would show text"
            require(not strings, "stop_strings", strings, expected)
            return cls(max_new_tokens, end_ids)
        return cls(max_new_tokens, end_ids, strings, decode, verifier.show)

    def cut(
        self, output_ids: Sequence[int], new_ids: Sequence[int]
    ) -> tuple[list[int], str | None]:
        """Return the part of `new_ids` that becomes text, and why the text ends there, if it does.

        `output_ids` is what was emitted before; `new_ids` never exceed the budget.
        """
        for count, token in enumerate(new_ids, start=1):
            if token in self.end_ids:
                return list(new_ids[:count]), "eos"
            if self.stop_strings and self.stops([*output_ids, *new_ids[:count]]):
                return list(new_ids[:count]), "stop"
        return list(new_ids), None

    def pruned(self, proposal: Proposal, context: Context) -> Proposal:
        """Drop the candidates that could never be emitted: behind the budget or an end."""
        output_ids = context.token_ids[context.num_prompt_tokens :]
        ends = self._stops_at(output_ids, proposal.tree)
        return proposal.pruned(context.max_depth, self.end_ids, ends)

    def _stops_at(self, output_ids: Sequence[int], tree: CandidateTree) -> frozenset[int]:
        """Return the nodes that complete a stop string behind `output_ids` and their path."""
        if not self.stop_strings:
            return frozenset()
        paths: list[list[int]] = [[]]  # below the root
        for node in range(1, len(tree.parents)):
            paths.append([*paths[tree.parents[node]], tree.token_ids[node]])
        nodes = range(1, len(paths))
        return frozenset(node for node in nodes if self.stops([*output_ids, *paths[node]]))

    def stops(self, output_ids: Sequence[int]) -> bool:
        """Whether the text so far holds a stop string that its last token completed."""
        # A few characters more, since some tokenizers drop a space that begins a text.
        enough = self.longest + MARGIN + len(self.shown(output_ids[-1:]))
        tail = self.tail(output_ids, enough)
        return any(string in tail for string in self.stop_strings)

    @property
    def longest(self) -> int:
        """The characters of the longest stop string."""
        return max(map(len, self.stop_strings), default=0)

    def shown(self, token_ids: Sequence[int]) -> str:
        """Turn token ids into the text that stop strings are looked for in."""
        show = self.show or self.decode
        assert show is not None
        return show(token_ids)

    def tail(self, output_ids: Sequence[int], enough: int) -> str:
        """Return the end of the text so far: `enough` characters, or all that there are.

        Some tokens are parts of characters, or show as nothing.
        """
        longest = self.longest
        reach = longest + MARGIN
        tail = self.shown(output_ids[-reach:])
        while len(tail) < enough and reach < len(output_ids):
            reach *= 2
            tail = self.shown(output_ids[-reach:])
        return tail


def _require_strings(strings: Sequence[object]) -> None:
    good = all(isinstance(string, str) and string for string in strings)
    require(good, "stop_strings", strings, "strings that are not empty")


def default_stopping(verifier: object) -> Stopping:
    """Return where a text ends unless given: at the verifier's own end tokens, if it has."""
    reads_text = getattr(verifier, "tokenizer", None) is not None
    return Stopping.of(cast(TextModel, verifier)) if reads_text else Stopping()


def text_of(verifier: object) -> Callable[[Sequence[int]], str] | None:
    """Return how tokens become text; None for a verifier that knows tokens only."""
    if getattr(verifier, "tokenizer", None) is None:
        return None
    return cast(TextModel, verifier).decode
