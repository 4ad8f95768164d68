"""One decoder layer over hidden states, with a KV cache that follows the committed text."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec.core.on_device import on_device
from specdec.lm import mask
from specdec.lm.cache import RowCache

# hidden [B, M, H], positions [B, M], additive mask [B, 1, M, L], cache -> [B, M, H]
Layer = Callable[[Tensor, Tensor, Tensor, RowCache], Tensor]
CHUNK = 512  # states per forward: bounds the mask, whatever the prompt


class CachedLayer:
    """Append states to rows of unlike lengths; nothing is ever taken back but whole rows."""

    def __init__(self, layer: Layer):
        self._layer = layer
        self.open(1, 64)

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        self._cache = RowCache(1, num_rows, capacity)

    def reset(self, row: int) -> None:
        """Empty a row."""
        self._cache.lengths[row] = 0

    def append(self, rows: Sequence[int], states: Sequence[Tensor]) -> Tensor:
        """Append each row's new states [n, H], n > 0; returns what comes out of its last [B, H]."""
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
        self._cache.place(rows, num_new, device)
        positions = on_device(starts, device)[:, None] + torch.arange(num_new, device=device)
        seen = mask.additive(mask.causal(starts, num_new, device), hidden.dtype)
        output = self._layer(hidden, positions, seen, self._cache)
        for row, start, chunk in zip(rows, starts, chunks, strict=True):
            self._cache.lengths[row] = start + len(chunk)  # without the padding
        return output
