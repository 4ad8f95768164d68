"""A decoder layer of a proposer's own, with a KV cache that follows the committed text."""

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

# What it reads [B, M, W], positions [B, M], additive mask [B, 1, M, L], cache -> [B, M, H]
Layer = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]
CHUNK = 512  # states per forward: bounds the mask, whatever the prompt
STEP = 64  # the most states that are a step's, and not a prompt's


class CachedLayer:
    """Rows of unlike lengths: what is appended stays, what extends them is truncated again.

    A layer may be several in one, each with cells of its own; all have the same lengths.
    """

    def __init__(self, layer: Layer, called: str = "the layer", num_layers: int = 1):
        self._layer = layer
        self._called = called
        self._num_layers = num_layers
        self._program: Function | None = None
        self.open(1, 64)

    def run_by(self, runtime: str, dtype: torch.dtype) -> None:
        """Run steps as `runtime` says; prompts are always read eagerly."""
        step = _step_of(self._layer)
        compiled = runtime == COMPILED
        self._program = function_of(runtime, step, dtype, self._called) if compiled else None

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        self._cache = RowCache(self._num_layers, num_rows, capacity)

    def reset(self, row: int) -> None:
        """Empty a row."""
        self._cache.lengths[row] = 0

    def length(self, row: int) -> int:
        """Return the number of cells of a row."""
        return self._cache.lengths[row]

    def truncate(self, row: int, length: int) -> None:
        """Drop all cells of a row but its first `length`."""
        self._cache.keep(row, length, ())

    def append(self, rows: Sequence[int], states: Sequence[Tensor]) -> Tensor:
        """Append what each row reads anew [n, W], n > 0; returns the output of its last [B, H].

        Raises:
            RefusedError: the program of a step cannot be had, or says something else than the
                layer; nothing was appended.
        """
        last: dict[int, Tensor] = {}
        for start in range(0, max(map(len, states)), CHUNK):
            active = [index for index, new in enumerate(states) if len(new) > start]
            chunks = [states[index][start : start + CHUNK] for index in active]
            some_rows = [rows[index] for index in active]
            starts = [self._cache.lengths[row] for row in some_rows]
            output = self.extend(some_rows, pad_sequence(chunks, batch_first=True))
            for number, (index, chunk) in enumerate(zip(active, chunks, strict=True)):
                last[index] = output[number, len(chunk) - 1]
                self.truncate(some_rows[number], starts[number] + len(chunk))  # no padding
        return torch.stack([last[index] for index in range(len(rows))])

    def extend(
        self,
        rows: Sequence[int],
        states: Tensor,  # [B, M, W]
        positions: Tensor | None = None,  # [B, M]
        attend: Tensor | None = None,  # [B, M, L] bool
        layer: Layer | None = None,
    ) -> Tensor:  # [B, M, H]
        """Add M cells to each row; by default each follows the one before it.

        `layer` makes them in place of the one whose cells the rows have; it is run eagerly.

        Raises:
            RefusedError: as of `append`.
        """
        starts = [self._cache.lengths[row] for row in rows]
        num_new, device = states.shape[1], states.device
        slots = on_device(starts, device)[:, None] + torch.arange(num_new, device=device)
        own = attend is None and layer is None
        if self._program and own and self._serves(rows, num_new):
            length = max(2, max(starts) + num_new)  # one cell would be a size of its own
            buffers = self._cache.buffers(range(rows[0], rows[0] + len(rows)), length)
            columns = torch.arange(length, device=device)
            (output,) = self._program(states, slots, columns, *buffers)
        else:
            self._cache.place(rows, num_new, device)
            seen = mask.causal(starts, num_new, device) if attend is None else attend
            places = slots if positions is None else positions
            made_by = layer or self._layer
            output = made_by(states, places, mask.additive(seen, states.dtype), self._cache)
        for row, start in zip(rows, starts, strict=True):
            self._cache.lengths[row] = start + num_new
        return output

    def _serves(self, rows: Sequence[int], num_new: int) -> bool:
        """Whether a program can run these rows: neighbours, with few new cells."""
        neighbours = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        return self._cache.is_allocated and neighbours and num_new <= STEP


def _step_of(layer: Layer) -> Function:
    """Write a layer's step as a function of tensors: positions are slots, as in any text."""

    def step(
        states: Tensor,  # [B, M, W]
        slots: Tensor,  # [B, M]
        columns: Tensor,  # [L]
        *buffers: Tensor,  # keys and values [B, heads, capacity, dim], of one layer after another
    ) -> tuple[Tensor, ...]:
        seen = mask.additive(columns <= slots[:, :, None], states.dtype)
        return (layer(states, slots, seen, SlotCache(buffers, slots, columns.shape[0])),)

    return step
