"""A cache of bounded size from which the oldest cells go."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache.sliding_window import SlidingWindow
from specdec.core.on_device import on_device
from specdec.lm.hf import HFCausalLM, without_gradients
from specdec.lm.new_cells import NewCells


class SlidingLM(HFCausalLM):
    """Each token sees the first tokens of its text, and those shortly before it.

    Which ones follows from its position alone: a candidate in a tree sees what it would see if it
    had been written, so that speculative decoding keeps the distribution. Cells that no later
    token sees are dropped, some at a time.

    Args:
        policy: how many tokens at the beginning are always seen.
        limit: tokens that one sees, itself included.
        model: see `HFCausalLM`, as for the other arguments.
    """

    def __init__(self, policy: SlidingWindow, limit: int, model: PreTrainedModel, *given: Any):
        self._limit, self._first = limit, policy.keep_first
        self._near = limit - policy.keep_first  # tokens, the one that looks included
        self._spare = max(32, limit // 8)  # cells dropped at a time: each time all others move
        super().__init__(model, *given)
        self._prefill_chunk = min(self._prefill_chunk, limit)

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        # As many may wait to be dropped, and candidates come on top.
        super().open(num_rows, min(capacity, self._limit + 2 * self._spare))
        self._dropped = [0] * num_rows

    def length(self, row: int) -> int:
        """Return the number of tokens of a row; of the older ones there may be no cells."""
        return self._cache.lengths[row] + self._dropped[row]

    @without_gradients
    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` tokens and, of those behind, only the ones listed."""
        if prefix == 0:
            self._dropped[row] = 0
        dropped = self._dropped[row]
        assert prefix >= dropped, "what was dropped cannot be seen again"
        super().keep(row, prefix - dropped, nodes)

    def _let_go(self, row: int) -> None:
        """Drop what no later token sees."""
        dropped = self._dropped[row]
        # The next token sees itself and `_near - 1` before it.
        unseen = self.length(row) - (self._near - 1) - self._first
        if unseen - dropped >= self._spare:
            self._cache.drop(row, self._first, unseen - dropped)
            self._dropped[row] = unseen

    def _placed(self, cells: NewCells) -> NewCells:
        """Say what new cells see of the cells that are there, and of each other."""
        starts = [self.length(row) for row in cells.rows]
        positions, attend = cells.placed(starts, self.max_length - 1)
        keys = torch.arange(attend.shape[2], device=self.device).repeat(len(starts), 1)  # [B, L]
        for number, start in enumerate(starts):
            keys[number, start : start + cells.num_new] = positions[number]
        near = positions[:, :, None] - keys[:, None, :] < self._near
        attend = attend & (near | (keys < self._first)[:, None, :])
        return NewCells(cells.rows, cells.token_ids, positions, self._held(cells.rows, attend))

    def _held(self, rows: Sequence[int], attend: Tensor) -> Tensor:  # [B, M, L] -> [B, M, held]
        """Leave out the columns of cells that were dropped."""
        dropped = [self._dropped[row] for row in rows]
        if not any(dropped):
            return attend
        held = max(self._cache.lengths[row] for row in rows) + attend.shape[1]
        columns = torch.arange(held, device=self.device)
        moved = columns + on_device(dropped, self.device)[:, None] * (columns >= self._first)
        wide = torch.nn.functional.pad(attend, (0, max(dropped)))
        return wide.gather(2, moved[:, None, :].expand(-1, attend.shape[1], -1))
