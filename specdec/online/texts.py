"""What a learner remembers: texts, and the verifier's hidden states along them."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.core.randomness import RandomStream
from specdec.core.values import FINAL, Context, Layer

TOKEN_BYTES = 8  # of an int64


class Stretches(NamedTuple):
    """Stretches of N texts, padded at the end to T tokens."""

    hidden: Tensor  # [N, T, W]: the verifier's states, side by side; 0 where there are none
    token_ids: Tensor  # [N, T] int64
    counted: Tensor  # [N, T] bool: tokens whose prediction is learned, never the first


@dataclass
class Remembered:
    """A text as far as it is committed, without `gone` tokens at its beginning.

    States end one token before it does: the verifier has not read the last one.
    """

    first: int  # the first of the tokens below whose prediction is learned, at least 1
    token_ids: list[int] = field(default_factory=list[int])
    pieces: list[Tensor] = field(default_factory=list[Tensor])  # [n, W] each
    gone: int = 0

    @property
    def num_counted(self) -> int:
        """The tokens whose prediction can be learned by now."""
        return max(0, len(self.token_ids) - self.first)

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return sum(piece.nbytes for piece in self.pieces) + TOKEN_BYTES * len(self.token_ids)

    @property
    def states(self) -> Tensor:  # [n, W]
        """All of its states."""
        if len(self.pieces) > 1:
            self.pieces = [torch.cat(self.pieces)]
        return self.pieces[0]

    def grow(self, whole: Sequence[int], states: Tensor) -> None:
        """Take what the `whole` text has more, and states [n, W] of the tokens that had none."""
        self.token_ids += whole[self.gone + len(self.token_ids) :]
        known = sum(map(len, self.pieces))
        # A text that ended within a step has fewer tokens than the step had states.
        self.pieces.append(states[: len(self.token_ids) - 1 - known])

    def cut(self, num_bytes: int) -> None:
        """Forget its beginning, so that it takes about so many bytes; two tokens stay."""
        share = min(1.0, num_bytes / self.num_bytes)
        fewer = len(self.token_ids) - max(2, int(share * len(self.token_ids)))
        if fewer > 0:
            self.pieces = [self.states[fewer:].clone()]
            del self.token_ids[:fewer]
            self.first = max(1, self.first - fewer)
            self.gone += fewer

    def stretch(self, end: int, length: int) -> tuple[list[int], Tensor, int]:
        """Return up to `length` tokens that end before `end`, their states, and their `first`."""
        start = max(0, end - length)
        states = self.states[start : min(end, len(self.token_ids) - 1)]
        return self.token_ids[start:end], states, max(1, self.first - start)


class Texts:
    """The newest texts, as many as `num_bytes` hold: older ones are forgotten.

    A text in flight grows with every step. With `prompts` the tokens of prompts are learned, too.
    `layers` are those of the states, the last one at the end: distributions follow from it.
    """

    def __init__(self, num_bytes: int, prompts: bool, layers: Sequence[Layer] = (FINAL,)):
        self._num_bytes = num_bytes
        self._layers = layers
        self._prompts = prompts
        self._kept = deque[Remembered]()
        self._in_flight = dict[int, Remembered]()  # by row

    def begin(self, context: Context) -> None:
        """Begin a text with its prompt, and the states of that."""
        text = Remembered(1 if self._prompts else max(1, context.num_prompt_tokens))
        self._in_flight[context.row] = text
        self._kept.append(text)
        self.grow(context)

    def grow(self, context: Context) -> None:
        """Take what was committed; `context` is that of the next step."""
        states = torch.cat([context.features[layer] for layer in self._layers], dim=-1)
        self._in_flight[context.row].grow(context.token_ids, states)
        sizes = [text.num_bytes for text in self._kept]
        size = sum(sizes)
        while size > self._num_bytes and len(self._kept) > 1:
            size -= self._kept.popleft().num_bytes
        if size > self._num_bytes:
            self._kept[0].cut(self._num_bytes)

    def sample(self, number: int, length: int, stream: RandomStream) -> Stretches | None:
        """Draw stretches of at most `length` tokens; None: there is nothing to learn yet.

        Each ends behind a token that is drawn among all that can be learned, or at the text's end
        where that is near enough.
        """
        ends = list(accumulate(text.num_counted for text in self._kept))
        if not ends or not ends[-1]:
            return None
        texts = list(self._kept)
        rows: list[tuple[list[int], Tensor, int]] = []
        for _ in range(number):
            place = stream.integer(ends[-1])
            text = texts[bisect_right(ends, place)]
            token = text.first + place - (ends[bisect_right(ends, place)] - text.num_counted)
            rows.append(text.stretch(min(len(text.token_ids), token + length // 2 + 1), length))
        return _padded(rows)

    def state(self) -> list[dict[str, Any]]:
        """Return what is to be kept of the texts, none of which is in flight."""
        return [
            {"first": text.first, "token_ids": text.token_ids, "states": text.states.clone()}
            for text in self._kept
        ]

    def restore(self, state: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Go on from what `state` returned."""
        self._in_flight.clear()
        self._kept = deque(
            Remembered(each["first"], list(each["token_ids"]), [each["states"].to(device)])
            for each in state
        )


def _padded(rows: Sequence[tuple[list[int], Tensor, int]]) -> Stretches:
    longest = max(len(token_ids) for token_ids, _, _ in rows)
    some = rows[0][1]
    hidden = some.new_zeros(len(rows), longest, some.shape[-1])
    token_ids = torch.zeros(len(rows), longest, dtype=torch.int64, device=some.device)
    counted = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, (ids, states, first) in enumerate(rows):
        hidden[row, : len(states)] = states
        token_ids[row, : len(ids)] = torch.tensor(ids, device=some.device)
        counted[row, first : len(ids)] = True
    return Stretches(hidden, token_ids, counted)
