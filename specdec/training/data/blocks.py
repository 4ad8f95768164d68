"""Cut one long token sequence into training blocks, in an order that a seed fixes."""

from typing import Protocol

import torch
from torch import Tensor

from specdec.core.errors import UserError


class TokenRow(Protocol):
    """One long row of tokens, in memory or in a file."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, span: slice, /) -> Tensor:  # [n] int64
        """Return a span of them."""
        ...


class ShuffledBlocks:
    """Blocks of `length` tokens; each epoch shifts the cuts and shuffles the blocks.

    The blocks numbered `first ... first + count - 1` depend on (seed, first, count) only, so a
    resumed run sees exactly what an undisturbed one would have seen.
    """

    def __init__(self, token_ids: TokenRow, length: int, seed: int):
        # One block less than fits: each epoch's cuts are shifted by up to a block.
        self.per_epoch = len(token_ids) // length - 1
        if self.per_epoch < 1:
            raise UserError(
                f"data.path: {len(token_ids)} tokens are too few for blocks of {length}"
                " (at least two blocks are needed)"
            )
        self._token_ids = token_ids
        self._length = length
        self._seed = seed
        self._epoch = -1
        self._starts = torch.zeros(0, dtype=torch.int64)

    def take(self, first: int, count: int) -> Tensor:  # [count, length]
        """Return `count` blocks, counted from the start of training."""
        starts = [self._start(index) for index in range(first, first + count)]
        return torch.stack([self._token_ids[start : start + self._length] for start in starts])

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            shift = int(torch.randint(self._length, (), generator=generator))
            order = torch.randperm(self.per_epoch, generator=generator)
            self._starts = shift + order * self._length
            self._epoch = epoch
        return int(self._starts[position])
