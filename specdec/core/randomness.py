"""Random streams keyed by (seed, prompt, step, purpose): fresh noise for every step.

Noise keyed by token position would be used again when a position is drafted again; rules that
look ahead (block verification, say) are then biased. Here each step owns new streams, and a
request draws the same numbers whatever else is in the batch.
"""

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol, overload

import torch
from torch import Tensor

from specdec.core.sampling import draw


class Stream(Protocol):
    """All random decisions that a rule can take, so that tests can enumerate them exactly."""

    def accept(self, probability: float) -> bool:
        """Decide yes with this probability (values above 1 mean 1)."""
        ...

    def choose(self, weights: Tensor) -> int:  # weights: [V]
        """Draw a token in proportion to its weight."""
        ...

    def choose_each(self, weights: Tensor) -> Sequence[int]:  # weights: [n, V]
        """Draw a token for each row, independently, waiting for the device only once."""
        ...


class RandomStream:
    """Pseudo-random decisions from the standard library's Mersenne Twister, 53 bits a number."""

    def __init__(self, *key: object):
        self._key = key

    @cached_property
    def _random(self) -> random.Random:
        # Seeded on first use: many steps of many proposers draw nothing at all.
        digest = hashlib.blake2b(repr(self._key).encode(), digest_size=16).digest()
        return random.Random(int.from_bytes(digest, "big"))

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()

    def integer(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        return self._random.randrange(bound)

    def accept(self, probability: float) -> bool:
        """Decide yes with this probability: strictly, so that probability 0 never does."""
        return self._random.random() < probability

    def choose(self, weights: Tensor) -> int:  # weights: [V]
        """Draw a token in proportion to its weight."""
        return int(draw(weights, self.uniform()))

    def choose_each(self, weights: Tensor) -> Sequence[int]:  # weights: [n, V]
        """Draw a token for each row, independently, waiting for the device only once."""
        uniforms = [self.uniform() for _ in range(len(weights))]
        if weights.device.type == "cpu":  # nothing to wait for: draw what is looked at
            return _LazyDraws(weights, uniforms)
        numbers = torch.tensor(uniforms, dtype=torch.float64, device=weights.device)
        return draw(weights, numbers[:, None]).squeeze(-1).tolist()


class _LazyDraws(Sequence[int]):
    """One token for each row, drawn when it is asked for."""

    def __init__(self, weights: Tensor, uniforms: list[float]):
        self._weights = weights
        self._uniforms = uniforms

    def __len__(self) -> int:
        return len(self._uniforms)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return int(draw(self._weights[index], self._uniforms[index]))
