"""No cache at all: every step reads the whole text again, as incremental decoding need not."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.protocols import Forward
from specdec.core.values import Layer
from specdec.lm import mask
from specdec.lm.batch import pad
from specdec.lm.hf import HFCausalLM, without_gradients
from specdec.lm.listening import heard
from specdec.lm.new_cells import NewCells
from specdec.lm.row_texts import RowTexts


class RecomputingLM(HFCausalLM):
    """The textbook's baseline: `verifier.cache=none`.

    It says what the same model with a cache says, up to rounding. Its rows hold tokens; what
    `prefill` appends is read with the step that follows, unless its states are asked for.
    """

    reads_whole = "it keeps no cells (verifier.cache=none)"

    def expect(self, num_tokens: int) -> None:
        """Stay as it is: there are no programs for whole texts."""

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        super().open(num_rows, 0)
        self._texts = RowTexts(num_rows)

    @property
    def cell_bytes(self) -> list[int]:
        """None are kept."""
        return [0] * self._num_layers

    def length(self, row: int) -> int:
        """Return the number of tokens of a row."""
        return len(self._texts[row])

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` tokens and, of those behind, only the ones listed."""
        self._texts.keep(row, prefix, nodes)

    @without_gradients
    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Append ordinary text to rows; see `CausalLM.prefill`."""
        if not layers or not any(map(len, token_ids)):
            for row, ids in zip(rows, token_ids, strict=True):
                self._texts[row].extend(ids)
            empty = torch.zeros(0, self.state_size, dtype=self.model.dtype, device=self.device)
            return [dict.fromkeys(layers, empty) for _ in rows]
        starts = [self.length(row) for row in rows]
        hidden = self.forward(rows, pad(token_ids, self.device), layers=layers).hidden
        for row, start, ids in zip(rows, starts, token_ids, strict=True):
            self.keep(row, start + len(ids))  # without the padding
        return [
            {layer: hidden[layer][number, : len(ids)] for layer in layers}
            for number, ids in enumerate(token_ids)
        ]

    @without_gradients
    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Append M tokens to each row, read all of them, and return the new ones' logits."""
        cells = NewCells(rows, token_ids, positions, attend)
        starts = [self.length(row) for row in rows]
        if self.no_trees is not None:
            cells.require_chain(starts, self.max_length - 1, self.tree_refusal)
        self._texts.append(rows, token_ids)
        read = pad([self._texts[row] for row in rows], self.device)  # [B, T]
        with heard(self.model, layers) as states:
            output = self.model(
                input_ids=read, use_cache=False, **self._whole(cells, starts, read.shape[1])
            )
        self.num_calls += 1
        self.num_cells += read.numel()
        new = on_device(starts, self.device)[:, None] + torch.arange(
            cells.num_new, device=self.device
        )
        rows_of = torch.arange(len(rows), device=self.device)[:, None]
        hidden = {layer: states[layer][rows_of, new] for layer in layers}
        return Forward(output.logits[rows_of, new], hidden)

    def _seen(self, rows: Sequence[int], attend: Tensor) -> Tensor:  # [B, T, T]
        """Return what tokens of whole texts see, who see what stands left of them."""
        return attend

    def _whole(
        self, cells: NewCells, starts: Sequence[int], length: int
    ) -> dict[str, Tensor | dict[str, Tensor] | None]:
        """Return positions and masks of whole texts [B, T], new cells included."""
        last = self.max_length - 1
        new_positions, seen = cells.placed(starts, last)
        whole = torch.arange(length, device=self.device).clamp(max=last)
        positions = whole.repeat(len(starts), 1)
        attend = mask.causal([0] * len(starts), length, self.device)
        for number, start in enumerate(starts):
            there = slice(start, start + cells.num_new)
            positions[number, there] = new_positions[number]
            attend[number, there, : seen.shape[2]] = seen[number]
        attend = self._seen(cells.rows, attend)
        masks = self._mask_kind.masks(attend, positions, positions, self.model.dtype)
        return {
            "position_ids": positions,
            "attention_mask": masks if self._mask_kind.attends else None,
        }
