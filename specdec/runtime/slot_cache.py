"""The KV cache that a program sees: buffers that it is given, and tensors that say where to write.

Everything that changes from step to step is a tensor or the length of one, so that a program that
was compiled or captured once is right at every step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotCache(Cache):
    """Buffers [B, heads, capacity, dim], keys and values of each layer in turn.

    Args:
        buffers: of all layers, keys before values.
        slots: [B, M], where the new cells of each row go.
        length: L, how many cells attention looks at.
    """

    def __init__(self, buffers: Sequence[Tensor], slots: Tensor, length: int):
        pairs = zip(buffers[::2], buffers[1::2], strict=True)
        super().__init__(layers=[SlotLayer(*pair, slots, length) for pair in pairs])


class SlotLayer(CacheLayerMixin):
    """Keys and values of one decoder layer."""

    is_sliding = False  # windows are the mask's business
    is_compileable = False  # or `generate` would compile of its own accord

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor, length: int):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self._slots, self._length = slots, length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:  # each [B, heads, M, dim] -> [B, heads, L, dim]
        """Write the new cells in place; return the cells that attention looks at."""
        assert self.keys is not None
        assert self.values is not None
        rows = torch.arange(len(self._slots), device=self._slots.device)[:, None]
        self.keys[rows, :, self._slots] = key_states.transpose(1, 2)
        self.values[rows, :, self._slots] = value_states.transpose(1, 2)
        return self.keys.narrow(2, 0, self._length), self.values.narrow(2, 0, self._length)

    def get_seq_length(self) -> int:
        """Return how many cells came before: of no row in particular, and nobody should ask."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (L, offset); only asked for when a model builds a mask of its own."""
        return self._length, 0

    def get_max_length(self) -> int:
        """Return the capacity."""
        assert self.keys is not None
        return self.keys.shape[2]
