"""A cache of rows for layers that keep a state of one size: it is there where it was left alone.

A state is overwritten with each token and cannot be rewound. So what a forward leaves is kept for
each of its rows until the row is rewound to before that. A row that is rewound to a length of which
no states are kept goes on from the last length before it, and the tokens since are read again.
Convolutions hold nothing but their last inputs, so of models with no other states every length of
a forward is kept, and nothing is ever read again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import LinearAttentionLayer

from specdec.lm.cache import RowCache, RowLayer
from specdec.lm.layer_kinds import LayerKind


class StatesAndRowLayer(LinearAttentionLayer, RowLayer):
    """A layer with attention beside a recurrent part."""

    def __init__(self, cache: "RecurrentCache", num_rows: int, num_states: int):
        LinearAttentionLayer.__init__(self, num_states)
        RowLayer.__init__(self, cache, num_rows)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Allocate cells for keys and values, which come in order, or states, which come named."""
        (RowLayer if args else LinearAttentionLayer).lazy_initialization(self, *args, **kwargs)


class Snapshot(NamedTuple):
    """The states that a forward left in one of its rows."""

    states: Sequence[Tensor]  # of all B rows of the forward, [B, ...] each
    row: int  # which of them
    end: int  # the length of the row behind the forward, padding included
    first: int  # they tell the states at lengths of the row from this one
    last: int  # to this one


class RecurrentCache(RowCache):
    """Cells and states of rows of unlike lengths, and the tokens that they were made of.

    Args:
        kinds: what each layer keeps.
        num_states: states of each such layer, as transformers counts them.
        num_rows: requests in flight.
        capacity: cells of each row, to begin with.
    """

    def __init__(self, kinds: Sequence[LayerKind], num_states: int, num_rows: int, capacity: int):
        super().__init__(0, num_rows, capacity)
        self.layers = [self._layer(kind, num_rows, num_states) for kind in kinds]
        self._row_layers = [each for each in self.layers if isinstance(each, RowLayer)]
        self._state_layers = [e for e in self.layers if isinstance(e, LinearAttentionLayer)]
        self._blank: list[Tensor] = []  # [1, ...]: the states of an empty row, once they are known
        self._keep_inputs = False  # whether layers keep all inputs of a forward, and no other state
        self._empty_rows()

    def _layer(self, kind: LayerKind, num_rows: int, num_states: int) -> Any:
        if kind is LayerKind.BOTH:
            return StatesAndRowLayer(self, num_rows, num_states)
        if kind is LayerKind.STATES:
            return LinearAttentionLayer(num_states)
        return RowLayer(self, num_rows)  # nobody writes to it where a layer keeps nothing

    def _empty_rows(self) -> None:
        self._snapshots: list[list[Snapshot]] = [[] for _ in self.lengths]
        self._texts: list[Tensor | None] = [None for _ in self.lengths]

    def restart(self) -> None:
        """Empty all rows."""
        super().restart()
        self._empty_rows()

    @property
    def cell_bytes(self) -> list[int]:
        """The bytes of one cell's key and value in each layer; 0 where a layer has no cells."""
        have_cells = {id(each): each for each in self._row_layers if each.is_initialized}
        buffers = [have_cells[id(e)].buffers() if id(e) in have_cells else () for e in self.layers]
        return [sum(b.shape[1] * b.shape[3] * b.element_size() for b in pair) for pair in buffers]

    @property
    def state_bytes(self) -> int:
        """The bytes of one row's states, once a model has read."""
        return sum(each.numel() * each.element_size() for each in self._blank)

    def keep(self, row: int, prefix: int, nodes: Sequence[int]) -> None:
        """Keep the first cells of a row, and nodes that follow them one after another."""
        assert list(nodes) == list(range(len(nodes))), "states follow chains alone"
        super().keep(row, prefix, nodes)
        best = self._best(row)
        length = self.lengths[row]
        kept = [] if best is None else [best._replace(last=min(best.last, length))]
        self._snapshots[row] = kept  # of other tokens that may follow they tell nothing

    def _best(self, row: int) -> Snapshot | None:
        """Return what tells the states of the greatest length up to the row's own."""
        length = self.lengths[row]
        candidates = [each for each in self._snapshots[row] if each.first <= length]
        return max(candidates, key=lambda each: each.last, default=None)

    def _start(self, row: int) -> int:
        best = self._best(row)
        return 0 if best is None else min(best.last, self.lengths[row])

    def lag(self, row: int) -> int:
        """Return how many tokens of a row must be read again before new ones can be."""
        return self.lengths[row] - self._start(row)

    def texts(self, rows: Sequence[int], token_ids: Tensor) -> Tensor:  # [B, M] -> [B, W]
        """Append tokens; rewinds each row to where it has states, and returns all that follows."""
        unread: list[Tensor] = []
        for row, new in zip(rows, token_ids, strict=True):
            text = self._texts[row]
            text = new if text is None else torch.cat([text[: self.lengths[row]], new])
            self._texts[row] = text
            self.lengths[row] = self._start(row)
            unread.append(text[self.lengths[row] :])
        return pad_sequence(unread, batch_first=True)

    def place(self, rows: Sequence[int], num_new: int, device: torch.device) -> None:
        """Announce `num_new` cells for each of `rows`, and give the layers their states."""
        super().place(rows, num_new, device)
        for number, (states, name) in enumerate(self._places()):
            states[name] = torch.cat([self._state(row, number) for row in rows])

    def _state(self, row: int, number: int) -> Tensor:  # [1, ...]
        best, blank = self._best(row), self._blank[number]
        if best is None:
            return blank
        found = best.states[number][best.row : best.row + 1]
        if not self._keep_inputs:
            return found
        # The inputs of a convolution up to the row's length, and of those the last ones.
        end = found.shape[-1] - (best.end - self.lengths[row])
        return found[..., end - blank.shape[-1] : end]

    def noted(self, rows: Sequence[int], lengths: Sequence[int], num_read: int) -> None:
        """Note what a forward of `num_read` tokens left; rows have `lengths` tokens at most."""
        states = [holder[name] for holder, name in self._places()]
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            end = self.lengths[row]
            self.lengths[row] = min(end, length)
            first = end - num_read + 1 if self._keep_inputs else end
            if first <= length:
                last = self.lengths[row]
                self._snapshots[row].append(Snapshot(states, index, end, first, last))
        if not self._blank:
            self._learn(states)

    def _learn(self, states: Sequence[Tensor]) -> None:
        """See from the first forward which states there are, and whether inputs tell them all."""
        self._blank = [each.new_zeros(1, *each.shape[1:]) for each in states]
        layers = self._state_layers
        if not any(any(layer.is_recurrent_states_initialized.values()) for layer in layers):
            self._keep_inputs = True
            for layer in layers:
                layer.activate_past_recording()

    def _places(self) -> list[tuple[dict[int, Any], int]]:
        """List where the layers have states: dictionaries, and the names in them."""
        return [
            (states, name)
            for layer in self._state_layers
            for states in (layer.conv_states, layer.recurrent_states)
            for name, each in states.items()
            if each is not None
        ]
