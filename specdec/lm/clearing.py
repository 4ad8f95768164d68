"""A cache of bounded size that is emptied when it is full."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache.clear import Clear
from specdec.core.on_device import on_device
from specdec.core.protocols import Forward
from specdec.core.values import Layer
from specdec.lm.hf import HFCausalLM, without_gradients
from specdec.lm.new_cells import NewCells
from specdec.lm.row_texts import RowTexts

SPARE = 32  # cells for the candidates of a step
UNKNOWN = -1  # the base of a row whose cells are not those of its text


class ClearingLM(HFCausalLM):
    """When a row is full its cells go, and its last tokens are read again as a text of their own.

    Where a row was emptied last follows from its length alone, so a row can always be filled again
    from its tokens, and any way of decoding finds the same cells.

    Args:
        policy: how many tokens are read again.
        limit: cells of a row.
        model: see `HFCausalLM`, as for the other arguments.
    """

    reads_whole = "its cache is emptied while it reads (cache=clear)"

    def __init__(self, policy: Clear, limit: int, model: PreTrainedModel, *given: Any):
        self._limit, self._again = limit, policy.read_again
        super().__init__(model, *given)

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        super().open(num_rows, min(capacity, self._limit + SPARE))
        self._texts = RowTexts(num_rows)
        self._bases = [0] * num_rows  # the token that a row's first cell is of, or UNKNOWN

    def length(self, row: int) -> int:
        """Return the number of tokens of a row."""
        return len(self._texts[row])

    def room(self, row: int) -> int:
        """Return how many tokens a step may append to a row, at least one."""
        length = self.length(row)
        return self._limit - (length - self._base(length))

    def _base(self, length: int) -> int:
        """Return the first token that is in sight of the one behind `length` others."""
        if length < self._limit:
            return 0
        stride = self._limit - self._again
        return -(-(length + 1 - self._limit) // stride) * stride

    @without_gradients
    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` tokens and, of those behind, only the ones listed."""
        if prefix >= self._bases[row] >= 0:
            super().keep(row, prefix - self._bases[row], nodes)
        else:  # the row was emptied within what is taken back
            self._bases[row] = UNKNOWN
        self._texts.keep(row, prefix, nodes)

    @without_gradients
    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Append ordinary text to rows; returns the states of those tokens that are in sight."""
        for row, ids in zip(rows, token_ids, strict=True):
            self._texts[row].extend(ids)
        return self._read_again(rows, layers)

    @without_gradients
    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Append M tokens to each row and return their logits; trees must fit the rows' room."""
        stale = [row for row in rows if self._bases[row] != self._base(self.length(row))]
        if stale:
            self._read_again(stale, ())
        room, num_new = min(map(self.room, rows)), token_ids.shape[1]
        if positions is not None or attend is not None or num_new <= room:
            found = super().forward(rows, token_ids, positions, attend, layers)
            self._texts.append(rows, token_ids)
            return found
        first = self.forward(rows, token_ids[:, :room], layers=layers)
        return _joined(first, self.forward(rows, token_ids[:, room:], layers=layers))

    def _read_again(
        self, rows: Sequence[int], layers: Sequence[Layer]
    ) -> list[dict[Layer, Tensor]]:
        """Fill rows with what is in sight of their next tokens."""
        for row in rows:
            self._bases[row] = self._base(self.length(row))
            self._cache.lengths[row] = 0
        in_sight = [self._texts[row][self._bases[row] :] for row in rows]
        return super().prefill(rows, in_sight, layers)

    def _placed(self, cells: NewCells) -> NewCells:
        """Count positions, and what is seen, from where rows were emptied."""
        bases = [self._bases[row] for row in cells.rows]
        positions, attend = cells.positions, cells.attend
        if positions is not None:
            shifts = on_device(bases, self.device)[:, None]
            positions = (positions - shifts).clamp(min=0)  # padding stands anywhere
        if attend is not None and any(bases):
            held = max(self._cache.lengths[row] for row in cells.rows) + cells.num_new
            wide = torch.nn.functional.pad(attend, (0, max(bases)))
            pairs = zip(wide, bases, strict=True)
            attend = torch.stack([each.narrow(1, base, held) for each, base in pairs])
        return cells._replace(positions=positions, attend=attend)


def _joined(first: Forward, second: Forward) -> Forward:
    hidden = {
        layer: torch.cat([states, second.hidden[layer]], dim=1)
        for layer, states in first.hidden.items()
    }
    return Forward(torch.cat([first.logits, second.logits], dim=1), hidden)
