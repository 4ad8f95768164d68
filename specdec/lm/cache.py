"""A KV cache for rows of unlike lengths, written in place and rewound without recomputing.

transformers' `DynamicCache` re-allocates at every call and can only crop; a tree of candidates
needs to keep some cells and to drop others, each row by itself.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LlamaModel
from transformers.cache_utils import Cache, CacheLayerMixin

from specdec.core.on_device import on_device

# What transformers calls the cache of a forward: until 5.23 the second word, and the third one
# where there are nothing but states.
CACHE_WORDS = ("cache", "past_key_values", "cache_params")


def cache_word(forward: Callable[..., object]) -> str:
    """Return the keyword by which a forward takes its cache; Llama's, if it names none.

    Models from elsewhere may still have the old word under a new transformers.
    """
    named = (inspect.signature(each).parameters for each in (forward, LlamaModel.forward))
    return next(word for names in named for word in CACHE_WORDS if word in names)


class RowCache(Cache):
    """Pre-allocated keys and values [rows, heads, capacity, dim] per layer, one length per row.

    The model writes while it runs: `place` says beforehand for which rows, `lengths` is moved
    afterwards by whoever called the model.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int):
        self.writing = Writing()
        self.lengths = [0] * num_rows
        self.capacity = capacity
        # Positions of the cells [rows, capacity], where somebody noted them: a window reaches so
        # many positions back, not so many cells.
        self._positions: Tensor | None = None
        self._row_layers = [RowLayer(self, num_rows) for _ in range(num_layers)]
        super().__init__(layers=[*self._row_layers])

    def restart(self) -> None:
        """Empty all rows."""
        self.lengths = [0] * len(self.lengths)

    def place(self, rows: Sequence[int], num_new: int, device: torch.device) -> None:
        """Announce `num_new` cells for each of `rows`."""
        starts = [self.lengths[row] for row in rows]
        longest = max(starts) + num_new
        if longest > self.capacity:
            self.capacity = longest + longest // 2
        self.writing = Writing.of(rows, starts, num_new, device)

    @property
    def is_allocated(self) -> bool:
        """Whether a model has written yet: its first states tell the shapes of the buffers."""
        return all(layer.is_initialized for layer in self._row_layers)

    @property
    def cell_bytes(self) -> list[int]:
        """The bytes of one cell's key and value in each layer, once a model has written.

        None of a layer that has no cells of its own: it reads those of another.
        """
        pairs = [layer.buffers() if layer.is_initialized else () for layer in self._written]
        return [sum(b.shape[1] * b.shape[3] * b.element_size() for b in pair) for pair in pairs]

    @property
    def key_heads(self) -> list[int]:
        """The heads of a cell's key in each layer, once a model has written; 0 without cells."""
        layers = self._written
        return [layer.buffers()[0].shape[1] if layer.is_initialized else 0 for layer in layers]

    @property
    def _written(self) -> "list[RowLayer]":
        written = [layer.is_initialized for layer in self._row_layers]
        assert any(written) or not written, "no key was written into the cache"
        return self._row_layers

    def buffers(self, rows: range, longest: int) -> tuple[Tensor, ...]:
        """Return keys and values of each layer, of neighbouring rows, with room for `longest`."""
        if longest > self.capacity:
            self.capacity = longest + longest // 2
        found: list[Tensor] = []
        for layer in self._row_layers:
            found += layer.buffers()
        if len(rows) == len(self.lengths):
            return tuple(found)
        return tuple(each.narrow(0, rows[0], len(rows)) for each in found)

    def keep(self, row: int, prefix: int, nodes: Sequence[int]) -> None:
        """Move the cells `prefix + nodes` of a row behind its first `prefix`; drop the rest."""
        assert prefix <= self.lengths[row]
        end = prefix + len(nodes)
        if list(nodes) != list(range(len(nodes))):  # already in place otherwise
            assert list(nodes) == sorted(set(nodes))
            for layer in self._row_layers:
                layer.gather(row, prefix, nodes)
            if self._positions is not None:
                source = [prefix + node for node in nodes]
                self._positions[row, prefix:end] = self._positions[row, source]
        self.lengths[row] = end

    def arrange(self, row: int, order: Sequence[int], num_layers: int) -> None:
        """Put cells behind a row's last one into another order, in the first layers alone."""
        if list(order) != list(range(len(order))):
            for layer in self._row_layers[:num_layers]:
                layer.gather(row, self.lengths[row], order)

    def drop(self, row: int, start: int, count: int) -> None:
        """Drop `count` cells of a row from `start` on; those behind them move up."""
        behind = range(start + count, self.lengths[row])
        self.keep(row, start, [cell - start for cell in behind])

    def note_positions(self, rows: Sequence[int], positions: Tensor, length: int) -> Tensor:
        """Remember where the new cells [B, M] of some rows stand; returns all theirs [B, L]."""
        noted = self._positions
        if noted is None:
            noted = positions.new_zeros(len(self.lengths), length)
        missing = length - noted.shape[1]
        if missing > 0:
            noted = torch.nn.functional.pad(noted, (0, missing + length // 2))
        for index, row in enumerate(rows):
            start = self.lengths[row]
            noted[row, start : start + positions.shape[1]] = positions[index]
        self._positions = noted
        return noted[on_device(list(rows), noted.device), :length]


class Writing:
    """Where the cells of the forward that is running go."""

    def __init__(self) -> None:
        self.length = 0  # L: what attention looks at
        self.neighbours: tuple[int, int] | None = (0, 0)  # first row and B, if they are in a row
        self.start: int | None = 0  # where all rows start, if neighbours start alike
        self.cells: tuple[Tensor, Tensor]  # rows [B, 1] and slots [B, M] otherwise
        self._elsewhere: dict[torch.device, tuple[Tensor, Tensor]] = {}  # the same on other devices

    @classmethod
    def of(
        cls, rows: Sequence[int], starts: Sequence[int], num_new: int, device: torch.device
    ) -> "Writing":
        """Choose slices (no copy on reading) where rows are neighbours, index tensors elsewhere."""
        writing = cls()
        writing.length = max(starts) + num_new
        first, count = rows[0], len(rows)
        in_a_row = list(rows) == list(range(first, first + count))
        writing.neighbours = (first, count) if in_a_row else None
        writing.start = starts[0] if in_a_row and min(starts) == max(starts) else None
        if writing.start is None:
            offsets = torch.arange(num_new, device=device)
            slots = on_device(list(starts), device)[:, None] + offsets
            writing.cells = on_device(list(rows), device)[:, None], slots
        return writing

    def cells_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the cells on a layer's device; models may lie on several."""
        if self.cells[0].device == device:
            return self.cells
        if device not in self._elsewhere:
            rows, slots = self.cells
            self._elsewhere[device] = rows.to(device), slots.to(device)
        return self._elsewhere[device]

    def into(self, buffer: Tensor, states: Tensor) -> Tensor:
        """Write states [B, heads, M, dim] into a buffer; return its B rows [B, heads, L, dim]."""
        if self.neighbours is None:
            rows, slots = self.cells_on(buffer.device)
            buffer[rows, :, slots] = states.transpose(1, 2)
            return buffer.narrow(2, 0, self.length).index_select(0, rows[:, 0])
        # narrow() is a slice that costs half as much, and this runs in every layer.
        batch = buffer.narrow(0, *self.neighbours)
        if self.start is None:
            rows, slots = self.cells_on(buffer.device)
            buffer[rows, :, slots] = states.transpose(1, 2)
        else:
            batch.narrow(2, self.start, states.shape[2]).copy_(states)
        return batch.narrow(2, 0, self.length)


class RowLayer(CacheLayerMixin):
    """Keys and values of one decoder layer. All keys are kept; windows are the mask's business."""

    is_sliding = False

    def __init__(self, cache: RowCache, num_rows: int):
        super().__init__()
        self._cache = cache
        self._num_rows = num_rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate when the first states tell heads, dimension and type."""
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.is_initialized = True

    def _allocate(self, states: Tensor) -> Tensor:
        # Zeros, because cells that no one attends to must still be finite.
        _, heads, _, dim = states.shape
        return states.new_zeros(self._num_rows, heads, self._cache.capacity, dim)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:  # each [B, heads, M, dim] -> [B, heads, L, dim]
        """Write the new cells of the announced rows and return those rows up to length L."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.buffers()
        writing = self._cache.writing
        return writing.into(keys, key_states), writing.into(values, value_states)

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Return keys and values, [rows, heads, capacity, dim] each, as large as they must be."""
        assert self.keys is not None
        assert self.values is not None
        if self._cache.capacity > self.keys.shape[2]:
            self.keys = self._grown(self.keys)
            self.values = self._grown(self.values)
        return self.keys, self.values

    def _grown(self, old: Tensor) -> Tensor:
        new = self._allocate(old)
        new[:, :, : old.shape[2]] = old
        return new

    def gather(self, row: int, prefix: int, nodes: Sequence[int]) -> None:
        """Move cells `prefix + nodes` of one row to `prefix`, `prefix + 1`, ..."""
        if self.keys is None or self.values is None:
            return
        source = on_device([prefix + node for node in nodes], self.keys.device)
        for buffer in (self.keys, self.values):
            buffer[row, :, prefix : prefix + len(nodes)] = buffer[row, :, source]

    def get_seq_length(self) -> int:
        """Return how many cells came before those being written."""
        return max(self._cache.lengths)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (L, offset); only asked for when a model builds a mask of its own."""
        return self._cache.writing.length, 0

    def get_max_length(self) -> int:
        """Return -1: buffers grow."""
        return -1
