"""Which tokens would end a text, wherever a candidate may stand."""

from collections.abc import Iterable, Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from specdec.decoding.stopping import Stopping
from specdec.recording.texts import Text

BROKEN = "\ufffd"  # what a part of a character is shown as


class Stops:
    """The tokens, of V, that end a text by themselves or complete a stop string.

    What a token shows as is looked up once, so that stop strings cost no decoding of every token at
    every place. Only behind a part of a character that is not enough: there tokens are decoded that
    go on with it.
    """

    @classmethod
    def of(cls, texts: Sequence[Text], stopping: Stopping, vocab_size: int) -> "Stops | None":
        """Return them if they explain all ends of these texts; None: something else did."""
        reasons = {text.finish_reason for text in texts}
        are_known = (stopping.end_ids or "eos" not in reasons) and (
            stopping.stop_strings or "stop" not in reasons
        )
        return cls(stopping, vocab_size) if are_known else None

    @property
    def some(self) -> bool:
        """Whether there are any."""
        return bool(self._end_ids or self._stopping.stop_strings)

    def __init__(self, stopping: Stopping, vocab_size: int):
        self._stopping = stopping
        self._vocab_size = vocab_size
        self._end_ids = sorted(each for each in stopping.end_ids if each < vocab_size)
        self._starting = cache(self._find_starting)

    def behind(self, texts: Sequence[Text], device: torch.device) -> Tensor:  # bool
        """Mark the tokens that end B texts if they stand at a place, behind the tokens before it.

        [1, 1, V] where they are the same everywhere, else [B, T, V].
        """
        base = torch.zeros(self._vocab_size, dtype=torch.bool)
        base[self._end_ids] = True
        if not self._stopping.stop_strings:
            return base.view(1, 1, -1).to(device)
        longest = max(len(text.output_ids) for text in texts)
        found = base.repeat(len(texts), longest, 1)
        found[:, 0, self._holding(self._alone)] = True
        found[:, 1:, self._holding(self._behind)] = True
        for row, text in enumerate(texts):
            for place in range(1, len(text.output_ids)):
                found[row, place, self._completing(text.output_ids[:place])] = True
        return found.to(device)

    def along(self, texts: Sequence[Text], paths: Sequence[Tensor]) -> list[Tensor]:  # of bool
        """Say of several tokens at each place of B texts whether the last of them ends the text.

        `paths` are [B, T, L] int64, and each answer is [B, T], of paths above which nothing ends.
        """
        end_ids = torch.tensor(self._end_ids, dtype=torch.int64)
        found = [torch.isin(path[..., -1].cpu(), end_ids) for path in paths]
        if self._stopping.stop_strings:
            token_ids: list[list[list[list[int]]]] = [path.tolist() for path in paths]
            for row, text in enumerate(texts):
                for place in range(len(text.output_ids)):
                    here = [path[row][place] for path in token_ids]
                    stops = self._completed(text.output_ids[:place], here)
                    for each, is_stop in zip(found, stops, strict=True):
                        each[row, place] |= is_stop
        return [each.to(path.device) for each, path in zip(found, paths, strict=True)]

    def _completed(self, output_ids: Sequence[int], paths: Sequence[Sequence[int]]) -> list[bool]:
        tail = self._tail(output_ids)
        return [
            self._may_stop(tail, path) and self._stopping.stops([*output_ids, *path])
            for path in paths
        ]

    def _may_stop(self, tail: str, path: Sequence[int]) -> bool:
        """Whether decoding may find a stop string: that takes a hundred times as long."""
        shown = tail + "".join(self._behind[token] for token in path)
        return BROKEN in shown or any(string in shown for string in self._stopping.stop_strings)

    def _tail(self, output_ids: Sequence[int]) -> str:
        return self._stopping.tail(output_ids, self._stopping.longest) if output_ids else ""

    def _completing(self, output_ids: Sequence[int]) -> list[int]:
        """Return the tokens that end a text with what stands before them."""
        strings, tail = self._stopping.stop_strings, self._tail(output_ids)
        found = [
            token
            for string in strings
            for cut in range(1, len(string))
            if tail.endswith(string[:cut])
            for token in self._starting(string[cut:])
        ]
        if tail.endswith(BROKEN) and not all(map(str.isascii, strings)):
            parts = self._starting(BROKEN)
            found += [each for each in parts if self._stopping.stops([*output_ids, each])]
        return found

    def _holding(self, shown: Sequence[str]) -> list[int]:
        """Return the tokens that hold a whole stop string."""
        strings = self._stopping.stop_strings
        return [token for token, word in enumerate(shown) if any(each in word for each in strings)]

    def _find_starting(self, string: str) -> list[int]:
        return [token for token, word in enumerate(self._behind) if word.startswith(string)]

    @cached_property
    def _alone(self) -> list[str]:  # [V]
        """What each token shows as at the beginning of a text."""
        return self._all_shown(())

    @cached_property
    def _behind(self) -> list[str]:  # [V]
        """What each token adds to a text: some tokenizers drop a space at its beginning."""
        letters = (token for token, word in enumerate(self._alone) if word.isalnum())
        before = tuple(next(((each,) for each in letters), ()))
        cut = len(self._stopping.shown(before)) if before else 0
        return [word[cut:] for word in self._all_shown(before)]

    def _all_shown(self, before: Iterable[int]) -> list[str]:
        shown = self._stopping.shown
        return [shown([*before, token]) for token in range(self._vocab_size)]
