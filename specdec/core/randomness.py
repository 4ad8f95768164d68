"""Random streams keyed by (seed, prompt, step, purpose): fresh noise for every step.

Noise keyed by token position would be used again when a position is drafted again; rules that
look ahead (block verification, say) are then biased. Here each step owns new streams, and a
request draws the same numbers whatever else is in the batch.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.on_host import integers
from specdec.core.sampling import draw


class Stream(Protocol):
    """All random decisions that a rule can take, so that tests can enumerate them exactly."""

    def accept(self, probability: float) -> bool:
        """Decide yes with this probability (values above 1 mean 1)."""
        ...

    def choose(self, weights: Tensor) -> int:  # weights: [V]
        """Draw a token in proportion to its weight."""
        ...

    def choose_each(self, weights: Tensor) -> Callable[[int], int]:  # weights: [n, V]
        """Draw a token for each row, independently; returns the function from rows to tokens.

        The device is waited for only once, whatever rows are asked for, or how often.
        """
        ...


class RandomStream:
    """Pseudo-random decisions from the standard library's Mersenne Twister, 53 bits a number."""

    def __init__(self, *key: object):
        self._key = key
        self._ahead: list[float] = []  # what was peeked at, the next one last

    @cached_property
    def _random(self) -> random.Random:
        # Seeded on first use: many steps of many proposers draw nothing at all.
        digest = hashlib.blake2b(repr(self._key).encode(), digest_size=16).digest()
        return random.Random(int.from_bytes(digest, "big"))

    def under(self, *purpose: object) -> "RandomStream":
        """Return a stream for one purpose among those of this one; equal calls return equal noise.

        Its numbers have nothing to do with those of this stream, or of another purpose.
        """
        return RandomStream(*self._key, *purpose)

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        return self._ahead.pop() if self._ahead else self._random.random()

    def peek(self, count: int) -> list[float]:
        """Return the next numbers of `uniform`, which still come."""
        missing = [self._random.random() for _ in range(count - len(self._ahead))]
        self._ahead = [*reversed(missing), *self._ahead]
        return self._ahead[::-1][:count]

    def integer(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        return self._random.randrange(bound)

    def accept(self, probability: float) -> bool:
        """Decide yes with this probability: strictly, so that probability 0 never does."""
        return self.uniform() < probability

    def choose(self, weights: Tensor) -> int:  # weights: [V]
        """Draw a token in proportion to its weight."""
        return int(draw(weights, self.uniform()))

    def choose_each(self, weights: Tensor) -> Callable[[int], int]:  # weights: [n, V]
        """Draw a token for each row; on the CPU, where nothing waits, only for rows asked for."""
        uniforms = [self.uniform() for _ in range(len(weights))]
        if weights.device.type == "cpu":
            return lambda row: int(draw(weights[row], uniforms[row]))
        return _drawn_at_once(weights, uniforms).__getitem__


def is_plain(stream: Stream) -> TypeGuard[RandomStream]:
    """Whether what a stream draws next can be known: one that decides otherwise is to be asked."""
    return type(stream) is RandomStream


def _drawn_at_once(weights: Tensor, uniforms: Sequence[float]) -> list[int]:
    numbers = on_device(uniforms, weights.device, torch.float64)
    return integers(draw(weights, numbers[:, None]).squeeze(-1))
