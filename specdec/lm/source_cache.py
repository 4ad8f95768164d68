"""The cells of an encoder-decoder model: those of sources, made once, and those of the text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from specdec.core.on_device import on_device
from specdec.lm.cache import RowCache


class SourceCache(Cache):
    """What cross-attention looks at: keys and values of the sources, in rows of unlike lengths.

    Models write to it once, after `place`, and read what `show` chose from then on.
    """

    def __init__(self, num_layers: int, num_rows: int):
        self.lengths = [0] * num_rows
        self.num_rows = num_rows
        self.rows: Sequence[int] = ()  # that are written
        self._layers = [SourceLayer(self) for _ in range(num_layers)]
        super().__init__(layers=[*self._layers])

    def place(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Announce the sources of some rows, which are over now."""
        self.rows = rows
        for row, length in zip(rows, lengths, strict=True):
            self.lengths[row] = length

    def show(self, rows: Sequence[int]) -> None:
        """Let models see the sources of these rows, as wide as the longest."""
        length = max(self.lengths[row] for row in rows)
        first, count = rows[0], len(rows)
        in_a_row = list(rows) == list(range(first, first + count))
        for layer in self._layers:
            layer.show(range(first, first + count) if in_a_row else rows, length)

    def mask(self, rows: Sequence[int], device: torch.device) -> Tensor:  # [B, S] int64
        """Return 1 where a source has a token, 0 where it is padded."""
        lengths = [self.lengths[row] for row in rows]
        columns = torch.arange(max(lengths), device=device)
        return (columns < on_device(lengths, device)[:, None]).long()


class SourceLayer(CacheLayerMixin):
    """The sources' keys and values in one layer, [rows, heads, longest, dim] each."""

    is_sliding = False

    def __init__(self, cache: SourceCache):
        super().__init__()
        self._cache = cache
        self._stored: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate when the first states tell heads, dimension and type."""
        keys, values = (self._allocate(each, each.shape[2]) for each in (key_states, value_states))
        self._stored = keys, values
        self.is_initialized = True

    def _allocate(self, states: Tensor, length: int) -> Tensor:
        # Zeros, because cells that no one attends to must still be finite.
        _, heads, _, dim = states.shape
        return states.new_zeros(self._cache.num_rows, heads, length, dim)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:  # each [B, heads, S, dim]
        """Keep the sources of the announced rows; returns them."""
        if self._stored is None:
            self.lazy_initialization(key_states, value_states)
        assert self._stored is not None
        length = key_states.shape[2]
        keys, values = (self._with_room(each, length) for each in self._stored)
        rows = on_device(list(self._cache.rows), keys.device)
        keys[rows, :, :length], values[rows, :, :length] = key_states, value_states
        self._stored = keys, values
        return key_states, value_states

    def _with_room(self, old: Tensor, length: int) -> Tensor:
        if length <= old.shape[2]:
            return old
        new = self._allocate(old, length)
        new[:, :, : old.shape[2]] = old
        return new

    def show(self, rows: Sequence[int], length: int) -> None:
        """Put what models read where they read it: without a copy where rows are neighbours."""
        assert self._stored is not None
        self.keys, self.values = (_rows(each, rows, length) for each in self._stored)

    def get_seq_length(self) -> int:
        """Return how many tokens the longest source has."""
        return max(self._cache.lengths)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (S, offset); only asked for when a model builds a mask of its own."""
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        """Return -1: buffers grow."""
        return -1


def _rows(stored: Tensor, rows: Sequence[int], length: int) -> Tensor:
    seen = stored.narrow(2, 0, length)
    if isinstance(rows, range):
        return seen.narrow(0, rows[0], len(rows))
    return seen.index_select(0, on_device(list(rows), stored.device))


class Cells(EncoderDecoderCache):
    """Both caches, as one forward of a model takes them.

    Stock decoders ask their cache for its length, and count positions from there on; so what it
    says is where new cells stand: a number, or [M] numbers where they do not follow each other.
    """

    def __init__(self, texts: RowCache, sources: SourceCache, standing: int | Tensor, known: bool):
        super().__init__(texts, sources)
        self._standing: Any = standing  # decoders add it to numbers, whichever it is
        # Whether the cells of the sources are there, and not to be made.
        self.is_updated = dict.fromkeys(range(len(sources.layers)), known)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return where the first new cell stands, or by how much each stands behind its place."""
        return self._standing
