"""One decoder layer over hidden states, with a KV cache that follows the committed text."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from specdec.core.on_device import on_device
from specdec.lm import mask
from specdec.lm.cache import RowCache
from specdec.runtime.choice import COMPILED, function_of
from specdec.runtime.program import Function
from specdec.runtime.slot_cache import SlotCache

# hidden [B, M, H], positions [B, M], additive mask [B, 1, M, L], cache -> [B, M, H]
Layer = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]
CHUNK = 512  # states per forward: bounds the mask, whatever the prompt
STEP = 64  # the most states that are a step's, and not a prompt's


class CachedLayer:
    """Append states to rows of unlike lengths; nothing is ever taken back but whole rows."""

    def __init__(self, layer: Layer):
        self._layer = layer
        self._program: Function | None = None
        self.open(1, 64)

    def run_by(self, runtime: str, dtype: torch.dtype) -> None:
        """Run steps as `runtime` says; prompts are always read eagerly."""
        step = _step_of(self._layer)
        compiled = runtime == COMPILED
        self._program = function_of(runtime, step, dtype, "the prefix layer") if compiled else None

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        self._cache = RowCache(1, num_rows, capacity)

    def reset(self, row: int) -> None:
        """Empty a row."""
        self._cache.lengths[row] = 0

    def append(self, rows: Sequence[int], states: Sequence[Tensor]) -> Tensor:
        """Append each row's new states [n, H], n > 0; returns what comes out of its last [B, H].

        Raises:
            RefusedError: the program of a step cannot be had, or says something else than the
                layer; nothing was appended.
        """
        last: dict[int, Tensor] = {}
        for start in range(0, max(map(len, states)), CHUNK):
            active = [index for index, new in enumerate(states) if len(new) > start]
            chunks = [states[index][start : start + CHUNK] for index in active]
            output = self._forward([rows[index] for index in active], chunks)
            for number, (index, chunk) in enumerate(zip(active, chunks, strict=True)):
                last[index] = output[number, len(chunk) - 1]
        return torch.stack([last[index] for index in range(len(rows))])

    def _forward(self, rows: Sequence[int], chunks: Sequence[Tensor]) -> Tensor:  # [B, M, H]
        hidden = pad_sequence(list(chunks), batch_first=True)
        starts = [self._cache.lengths[row] for row in rows]
        num_new, device = hidden.shape[1], hidden.device
        slots = on_device(starts, device)[:, None] + torch.arange(num_new, device=device)
        neighbours = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        if self._program and self._cache.is_allocated and neighbours and num_new <= STEP:
            length = max(2, max(starts) + num_new)  # one cell would be a size of its own
            buffers = self._cache.buffers(range(rows[0], rows[0] + len(rows)), length)
            columns = torch.arange(length, device=device)
            (output,) = self._program(hidden, slots, columns, *buffers)
        else:
            self._cache.place(rows, num_new, device)
            seen = mask.additive(mask.causal(starts, num_new, device), hidden.dtype)
            output = self._layer(hidden, slots, seen, self._cache)
        for row, start, chunk in zip(rows, starts, chunks, strict=True):
            self._cache.lengths[row] = start + len(chunk)  # without the padding
        return output


def _step_of(layer: Layer) -> Function:
    """Write a layer's step as a function of tensors: positions are slots, as in any text."""

    def step(
        hidden: Tensor,  # [B, M, H]
        slots: Tensor,  # [B, M]
        columns: Tensor,  # [L]
        keys: Tensor,  # [B, heads, capacity, dim]
        values: Tensor,
    ) -> tuple[Tensor, ...]:
        seen = mask.additive(columns <= slots[:, :, None], hidden.dtype)
        return (layer(hidden, slots, seen, SlotCache((keys, values), slots, columns.shape[0])),)

    return step
