"""Forwards of an `HFCausalLM` by programs that were compiled, in place of the model's own code."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.draft_chain import DraftChain, DraftedChain
from specdec.core.on_device import on_device
from specdec.core.protocols import Forward
from specdec.core.unlike_vocabularies import known
from specdec.core.values import Layer
from specdec.lm.cache import RowCache
from specdec.lm.chain_cells import ChainCells
from specdec.lm.mask import MaskKind
from specdec.lm.new_cells import NewCells, Span
from specdec.runtime.program import FULL, SLIDING, ChainProgram, Inputs
from specdec.runtime.proven import ProvenSteps


class Programs:
    """Lay out new cells as the inputs of a program, and run it.

    Args:
        steps: the programs of the model.
        kind: which masks it wants.
        model: whose steps they are.
        max_length: tokens of its context.
    """

    def __init__(self, steps: ProvenSteps, kind: MaskKind, model: PreTrainedModel, max_length: int):
        self._steps = steps
        self._kind = kind
        self._dtype = model.dtype
        self._last_position = max_length - 1
        self._columns = torch.arange(0, device=model.device)

    def __call__(
        self,
        cache: RowCache,
        span: Span,
        cells: NewCells,
        layers: Sequence[Layer],
        eagerly: Callable[[NewCells, Sequence[Layer]], Sequence[Tensor]],
    ) -> Forward:
        """Append cells to rows; `eagerly` says what the model's own code makes of the same."""
        inputs = self._inputs(cache, span, cells)
        shown: list[Layer] = ["final", *(layer for layer in layers if layer != "final")]
        wanted = tuple(shown)
        logits, *hidden = self._steps(inputs, wanted, span.places, lambda _: eagerly(cells, shown))
        for row in cells.rows:
            cache.lengths[row] += cells.num_new
        known = dict(zip(shown, hidden, strict=True))
        return Forward(logits, {layer: known[layer] for layer in layers})

    def draft(
        self,
        cache: RowCache,
        span: Span,
        cells: ChainCells,
        chain: DraftChain,
        eagerly: Callable[[NewCells, Sequence[Layer]], Sequence[Tensor]],
    ) -> DraftedChain:
        """Append text to rows and draft a chain behind it; rows hold all but its last token."""

        def plainly(found: tuple[Tensor, ...]) -> Sequence[Tensor]:
            logits, _, drafted = found
            token_ids, places = cells.written(known(drafted, logits.shape[2]))
            said = eagerly(NewCells(cells.rows, token_ids), ())[0].float()
            at = places[..., None].expand(-1, -1, said.shape[2])
            return said.gather(1, at), *chain.drawn(logits, cells.uniforms)

        inputs = self._chain_inputs(cache, span, cells.filled(span), chain.depth)
        wanted = ChainProgram(chain, self._kind.window, self._kind.hybrid, self._last_position)
        _, probs, token_ids = self._steps(inputs, wanted, span.places, plainly)
        for row, length in zip(cells.rows, cells.lengths, strict=True):
            cache.lengths[row] += length + chain.depth - 1
        return DraftedChain(token_ids, probs)

    def _chain_inputs(self, cache: RowCache, span: Span, cells: ChainCells, depth: int) -> Inputs:
        starts = [cache.lengths[row] for row in span.rows]
        num_new = cells.num_new + depth - 1
        length = max(starts) + num_new
        columns, everywhere = self._sight(length), self._slots(starts, num_new)
        if self._kind.window is not None:
            cache.note_positions(span.rows, everywhere, length)
        slots = everywhere[:, : cells.num_new].contiguous()
        positions = slots.clamp(max=self._last_position)
        token_ids, draws = cells.token_ids.contiguous(), (cells.last, cells.uniforms)
        buffers = cache.buffers(span.rows, length)
        return Inputs(token_ids, positions, slots, columns, (), buffers, draws)

    def _inputs(self, cache: RowCache, span: Span, cells: NewCells) -> Inputs:
        starts = [cache.lengths[row] for row in span.rows]
        # One cell in sight would be a size of its own; a second one is there, and unseen.
        length = max(2, max(starts) + cells.num_new)
        buffers, columns = cache.buffers(span.rows, length), self._sight(length)
        slots = self._slots(starts, cells.num_new)
        filled = span.filled(cells, starts, self._last_position)
        if filled.attend is None and filled.positions is None and self._kind.window is None:
            # Never the same tensor as the slots: a compiler would take them for one ever after.
            within = length - 1 <= self._last_position
            positions = slots.view(slots.shape) if within else slots.clamp(max=self._last_position)
            return Inputs(filled.token_ids.contiguous(), positions, slots, columns, (), buffers)
        positions, attend = filled.placed(starts, self._last_position)
        attend = torch.nn.functional.pad(attend, (0, length - attend.shape[2]))
        masks = self._kind.of_cells(cache, span.rows, positions, attend, self._dtype)
        given = (masks,) if isinstance(masks, Tensor) else (masks[FULL], masks[SLIDING])
        contiguous = tuple(mask.contiguous() for mask in given)
        token_ids, positions = filled.token_ids.contiguous(), positions.contiguous()
        return Inputs(token_ids, positions, slots, columns, contiguous, buffers)

    def _sight(self, length: int) -> Tensor:  # [L]
        if len(self._columns) < length:
            self._columns = torch.arange(2 * length, device=self._columns.device)
        return self._columns.narrow(0, 0, length)

    def _slots(self, starts: Sequence[int], num_new: int) -> Tensor:  # [B, M]
        """Where new cells go: a view of stored numbers for a single row, which costs least."""
        if len(starts) == 1:
            return self._columns.narrow(0, starts[0], num_new)[None]
        firsts = on_device(list(starts), self._columns.device)
        return firsts[:, None] + self._columns.narrow(0, 0, num_new)
