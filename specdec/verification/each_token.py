"""A token after each node, for rules that draw first and then look who bears what was drawn."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.on_host import integers
from specdec.core.randomness import RandomStream
from specdec.core.sampling import draw
from specdec.core.shown import Shown


class EachToken:
    """Tokens drawn from `weights` [B, M, V], one after each node.

    Where reading a number waits for the device all are drawn at once and read with other numbers;
    else only those that are asked for, those of all roots together.
    """

    def __init__(self, shown: Shown, weights: Tensor):
        self.ahead: tuple[Tensor, ...] = ()  # [B, M], to be read, or nothing
        self._sizes = [len(each.tree.parents) for each in shown.proposals]
        self._choose: list[Callable[[int], int]] = []
        streams = shown.numbered
        if streams is not None and shown.drawn_ahead:
            numbers = self._uniforms(streams, weights)
            self.ahead = (draw(weights, numbers[..., None]).squeeze(-1),)
        elif shown.certain:
            self._choose = [cache(_likeliest(row)) for row in weights]
        elif streams is not None and len(streams) > 1:
            self._choose = self._lazily(streams, weights)
        else:
            rows = zip(shown.streams, weights, self._sizes, strict=True)
            self._choose = [cache(stream.choose_each(row[:size])) for stream, row, size in rows]

    def choosers(
        self, ahead: Sequence[Sequence[Sequence[float]]]
    ) -> list[Callable[[int], int]]:  # [B] of node -> token
        """Return who tells each request's tokens; `ahead` is what was read of it, if it was."""
        if ahead:
            return [_looked_up(row) for row in ahead[0]]
        return self._choose

    def _uniforms(self, streams: Sequence[RandomStream], weights: Tensor) -> Tensor:  # [B, M]
        width = weights.shape[1]
        drawn = [
            [*(stream.uniform() for _ in range(size)), *[0.0] * (width - size)]
            for stream, size in zip(streams, self._sizes, strict=True)
        ]
        return on_device(drawn, weights.device, torch.float64)

    def _lazily(
        self, streams: Sequence[RandomStream], weights: Tensor
    ) -> list[Callable[[int], int]]:
        numbers = self._uniforms(streams, weights)
        roots = integers(draw(weights[:, 0], numbers[:, :1]).squeeze(-1))

        def chooser(owner: int) -> Callable[[int], int]:
            def choose(node: int) -> int:
                if node == 0:
                    return roots[owner]
                return int(draw(weights[owner, node], numbers[owner, node : node + 1]))

            return choose

        return [cache(chooser(owner)) for owner in range(len(streams))]


def _likeliest(weights: Tensor) -> Callable[[int], int]:  # [M, V]
    return lambda node: int(weights[node].argmax())


def _looked_up(tokens: Sequence[float]) -> Callable[[int], int]:
    return lambda node: int(tokens[node])
