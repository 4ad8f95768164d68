"""One step of a model as a function of tensors alone: what can be compiled, or captured."""

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.values import Layer
from specdec.runtime.slot_cache import SlotCache

FULL, SLIDING = "full_attention", "sliding_attention"


class Inputs(NamedTuple):
    """What a step reads: B neighbouring rows with M new cells each, L cells in sight.

    All but the buffers are contiguous: compilers take the strides of the first step for granted.
    """

    token_ids: Tensor  # [B, M]
    positions: Tensor  # [B, M]
    slots: Tensor  # [B, M], where the new cells go
    columns: Tensor  # [L]: 0, 1, ..., L - 1
    # Additive, [B, 1, M, L]: none: each cell sees those of its row up to its slot; one; or one for
    # full layers and one for sliding ones.
    masks: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]  # [B, heads, capacity, dim], keys and values of each layer in turn


class Kind(NamedTuple):
    """Which program serves a step: within one kind all sizes may differ."""

    several_rows: bool
    several_cells: bool
    num_masks: int
    layers: tuple[Layer, ...]  # the hidden states that are returned

    @classmethod
    def of(cls, inputs: Inputs, layers: Sequence[Layer]) -> "Kind":
        """Choose by what is asked and, as compilers do, by which sizes are 1."""
        rows, cells = inputs.token_ids.shape
        return cls(rows > 1, cells > 1, len(inputs.masks), tuple(layers))


Function = Callable[..., tuple[Tensor, ...]]  # of tensors
Program = Callable[..., tuple[Tensor, ...]]  # Inputs -> logits [B, M, V], hidden states [B, M, H]


def step_of(model: PreTrainedModel, cache_word: str, layers: Sequence[Layer]) -> Program:
    """Write the program of a model that returns logits and the hidden states of `layers`."""

    def step(
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        columns: Tensor,
        masks: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        output = model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=_given(masks) if masks else _of_text(slots, columns, model.dtype),
            **{cache_word: SlotCache(buffers, slots, columns.shape[0])},
            use_cache=True,
            output_hidden_states=True,
        )
        return (output.logits, *(hidden_of(output, layer) for layer in layers))

    # The compiler remembers programs by their code object: with one for all models, the first
    # model's program would be run for the others too.
    own: Any = FunctionType(step.__code__.replace(), globals(), closure=step.__closure__)
    return own


def reading_of(model: PreTrainedModel) -> Function:
    """Write what reads whole texts below the vocabulary head: [B, T] -> [B, T, H]."""

    def read(token_ids: Tensor) -> tuple[Tensor, ...]:
        return (model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state,)

    return read


def _given(masks: tuple[Tensor, ...]) -> Tensor | Mapping[str, Tensor]:
    return masks[0] if len(masks) == 1 else dict(zip((FULL, SLIDING), masks, strict=True))


def _of_text(slots: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:  # [B, 1, M, L]
    seen = columns <= slots[:, :, None]
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


def hidden_of(output: Any, layer: Layer) -> Tensor:  # [B, M, H]
    """Return a layer's states: entry i + 1 is the output of layer i, the last behind the norm."""
    hidden_states: Sequence[Tensor] = output.hidden_states
    if layer == "final":
        return hidden_states[-1]
    assert isinstance(layer, int)
    assert 0 <= layer < len(hidden_states) - 2
    return hidden_states[layer + 1]
