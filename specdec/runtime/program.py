"""One step of a model as a function of tensors alone: what can be compiled, or captured."""

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.draft_chain import DraftChain
from specdec.core.unlike_vocabularies import known
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
    # Of a chain: the place of each row's last token [B], and uniforms in [0, 1) [B, depth].
    draws: tuple[Tensor, ...] = ()


class ChainProgram(NamedTuple):
    """A chain that is drafted behind plain text, by a model whose layers see so far back."""

    draft: DraftChain
    window: int | None  # None: no layer has one
    hybrid: bool  # full layers and sliding ones
    last_position: int


# What a step returns: logits and the hidden states of some layers, or a chain that it drafts.
Wanted = tuple[Layer, ...] | ChainProgram


class Kind(NamedTuple):
    """Which program serves a step: within one kind all sizes may differ."""

    several_rows: bool
    several_cells: bool
    num_masks: int
    wanted: Wanted

    @classmethod
    def of(cls, inputs: Inputs, wanted: Wanted) -> "Kind":
        """Choose by what is wanted and, as compilers do, by which sizes are 1."""
        rows, cells = inputs.token_ids.shape
        return cls(rows > 1, cells > 1, len(inputs.masks), wanted)


Function = Callable[..., tuple[Tensor, ...]]  # of tensors
# Of a function's inputs and what a program found: what it should have found. What is drawn is given
# back as it was, since rounding may draw another token, and a chain goes on with what was drawn.
Expected = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]
Program = Callable[..., tuple[Tensor, ...]]  # of Inputs, to what is wanted


def program_of(model: PreTrainedModel, cache_word: str, wanted: Wanted) -> Program:
    """Write the program of a model that returns what is wanted."""
    if isinstance(wanted, ChainProgram):
        return _chain_of(model, cache_word, wanted)
    return _step_of(model, cache_word, wanted)


def _step_of(model: PreTrainedModel, cache_word: str, layers: Sequence[Layer]) -> Program:
    """Write what returns logits [B, M, V] and the hidden states [B, M, H] of `layers`."""

    def step(*given: Any) -> tuple[Tensor, ...]:
        inputs = Inputs(*given)
        _say_capacity(inputs.buffers)
        _say_sight(inputs)
        mask = _given(inputs.masks) if inputs.masks else _of_text(inputs, model.dtype)
        output = _run(model, cache_word, inputs, mask, output_hidden_states=True)
        return (output.logits, *(hidden_of(output, layer) for layer in layers))

    return _own(step)


def _chain_of(model: PreTrainedModel, cache_word: str, chain: ChainProgram) -> Program:
    """Write what drafts: its logits and q [B, depth, V], both float32, and tokens [B, depth].

    The draft's steps stand one behind the other, and what each draws is what the next one reads.
    """

    def draft(*given: Any) -> tuple[Tensor, ...]:
        inputs = Inputs(*given)
        _say_capacity(inputs.buffers)
        last, uniforms = inputs.draws
        found: list[tuple[Tensor, ...]] = []
        for number in range(chain.draft.depth):
            mask = _of_chain(inputs, chain, model.dtype)
            output = _run(model, cache_word, inputs, mask)
            logits, slots, own_size = output.logits.float(), inputs.slots, output.logits.shape[2]
            if number == 0:  # behind each row's last token may be padding
                places = last[:, None]
                logits = logits.gather(1, places[..., None].expand(-1, -1, own_size))
                slots = slots.gather(1, places)
            probs, drawn = chain.draft.drawn(logits, uniforms[:, number : number + 1])
            found.append((logits, probs, drawn))
            slots = slots + 1
            positions = slots.clamp(max=chain.last_position)
            inputs = Inputs(known(drawn, own_size), positions, slots, *inputs[3:])
        return tuple(torch.cat(each, dim=1) for each in zip(*found, strict=True))

    return _own(draft)


def _run(model: PreTrainedModel, cache_word: str, inputs: Inputs, mask: Any, **more: bool) -> Any:
    """Call the model's own code; returns its output."""
    return model(
        input_ids=inputs.token_ids,
        position_ids=inputs.positions,
        attention_mask=mask,
        **{cache_word: SlotCache(inputs.buffers, inputs.slots, inputs.columns.shape[0])},
        use_cache=True,
        **more,
    )


def _say_capacity(buffers: Sequence[Tensor]) -> None:
    """Tell compilers that all layers have as many cells: one number instead of dozens."""
    for each in buffers[1:]:
        torch._check(each.shape[2] == buffers[0].shape[2])


def _say_sight(inputs: Inputs) -> None:
    """Tell compilers that masks are as wide as what is in sight."""
    for mask in inputs.masks:
        torch._check(mask.shape[3] == inputs.columns.shape[0])


def _own(program: Program) -> Program:
    """Give a program a code object of its own.

    By that the compiler remembers programs: with one for all models, the first model's would be run
    for the others too.
    """
    written: Any = program
    own: Any = FunctionType(written.__code__.replace(), globals(), closure=written.__closure__)
    return own


def reading_of(model: PreTrainedModel) -> Function:
    """Write what reads whole texts below the vocabulary head: [B, T] -> [B, T, H]."""

    def read(token_ids: Tensor) -> tuple[Tensor, ...]:
        return (model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state,)

    return read


def _given(masks: tuple[Tensor, ...]) -> Tensor | Mapping[str, Tensor]:
    return masks[0] if len(masks) == 1 else dict(zip((FULL, SLIDING), masks, strict=True))


def _of_text(
    inputs: Inputs, dtype: torch.dtype, window: int | None = None
) -> Tensor:  # [B, 1, M, L]
    """Let each cell see its row up to itself, in a text whose positions are its slots."""
    own = inputs.slots[:, :, None]
    seen = inputs.columns <= own
    if window is not None:
        seen = seen & (inputs.columns > own - window)
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


def _of_chain(
    inputs: Inputs, chain: ChainProgram, dtype: torch.dtype
) -> Tensor | Mapping[str, Tensor]:
    near = _of_text(inputs, dtype, chain.window)
    return {FULL: _of_text(inputs, dtype), SLIDING: near} if chain.hybrid else near


def hidden_of(output: Any, layer: Layer) -> Tensor:  # [B, M, H]
    """Return a layer's states: entry i + 1 is the output of layer i, the last behind the norm."""
    hidden_states: Sequence[Tensor] = output.hidden_states
    if layer == "final":
        return hidden_states[-1]
    assert isinstance(layer, int)
    assert 0 <= layer < len(hidden_states) - 2
    return hidden_states[layer + 1]
