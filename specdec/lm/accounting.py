"""What the weights and the cache of a model take, to the byte, by its configuration alone.

The model is built on torch's meta device, where tensors have shapes and types but no memory, and
writes one cell into the very cache that decoding uses. No formula of any family can be wrong.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights

from specdec.core.errors import UserError, first_line
from specdec.lm.encoder_decoder import EncoderDecoderLM
from specdec.lm.hf import HFCausalLM

META = "meta"
EXPERTS = "batched_mm"  # reads weights of experts by index: no shape depends on who was chosen


class Unaccounted(UserError):
    """What a model takes cannot be known before it is loaded: its code does not run on shapes."""


@dataclass(frozen=True)
class Weights:
    """What a model holds in memory before it has read anything."""

    num_parameters: int  # tied ones once
    num_bytes: int  # of parameters, each in the type that it is loaded in
    buffer_bytes: int  # of tables that are computed, and of what was never trained


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of a text.

    Other kinds of memory have a field of their own here, and a line in what is printed.
    """

    cell_bytes: int  # of each token: its key and its value; 0: none is kept
    num_heads: int  # of keys; 0 without cells
    state_bytes: int = 0  # of a request, however long its text: of a recurrent layer


def on_meta(
    build: Callable[..., PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Build a model without memory, with the types that loading would give its weights.

    Args:
        build: `from_config` of a loader of transformers, or `_from_config` of a class.
        config: the model's; it stays as it is.
        dtype: of the weights, but for those that a family keeps in float32.
    """
    own = deepcopy(config)
    with torch.device(META), no_init_weights():
        model = build(own, dtype=dtype)
    # Loading ties what was not initialised; without initialisation nothing was tied yet.
    model.tie_weights()
    model.set_experts_implementation(EXPERTS)
    _keep_in_float32(model, dtype)
    return model.eval()


def _keep_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Widen what `from_pretrained` would not narrow; `from_config` narrows all."""
    plan: Mapping[str, torch.dtype] = model._get_dtype_plan(dtype)
    persistent = model.state_dict(keep_vars=True)
    for name, each in persistent.items():
        for pattern, wide in plan.items():
            if re.search(pattern.replace("*", ".*"), name):
                each.data = each.data.to(wide)


def weights_of(model: PreTrainedModel) -> Weights:
    """Count what a model holds, whether or not it is on the meta device."""
    parameters = list(model.parameters())
    return Weights(
        sum(each.numel() for each in parameters),
        sum(map(_size, parameters)),
        sum(map(_size, model.buffers())),
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@torch.inference_mode()
def cells_of(model: PreTrainedModel) -> list[LayerCache]:
    """Return what each layer of a decoder keeps in our cache, by letting it write one cell.

    Raises:
        Unaccounted: it cannot.
    """
    with _by_shapes(model):
        lm = EncoderDecoderLM(model) if model.config.is_encoder_decoder else HFCausalLM(model)
        lm.open(1, 1)
        lm.prefill([0], [[0]])
        return [LayerCache(*each) for each in zip(lm.cell_bytes, lm.key_heads, strict=True)]


@torch.inference_mode()
def stock_cells_of(model: PreTrainedModel) -> list[LayerCache]:
    """Return what each layer keeps in the cache that transformers makes for the model.

    Also of models that our cache does not hold: recurrent layers keep a state.

    Raises:
        Unaccounted: it makes none, or cannot.
    """
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with _by_shapes(model):
        output: Any = model(input_ids=token, use_cache=True)
    found = [each for each in output.values() if isinstance(each, Cache)]
    if not found:
        raise Unaccounted(f"{model.config.model_type}: transformers makes no cache of layers")
    return [_layer_cache(layer) for layer in found[0].layers]


@contextmanager
def _by_shapes(model: PreTrainedModel) -> Iterator[None]:
    """Say in a line why a model does not run where there are shapes alone."""
    try:
        yield
    except Exception as error:  # whatever the code of a family raises
        if model.device.type != META:
            raise
        reason = f"its code does not run on shapes alone ({first_line(error)})"
        raise Unaccounted(f"{model.config.model_type}: {reason}") from None


def _layer_cache(layer: object) -> LayerCache:
    cells, states, heads = 0, 0, 0
    for name, each in _tensors(layer):
        if name.endswith(("keys", "values")):
            cells += _size(each)
            heads = each.shape[1] if name == "keys" else heads
        else:
            states += _size(each)
    return LayerCache(cells, heads, states)


def _tensors(layer: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a layer of a cache holds; a recurrent one keeps them in mappings."""
    for name, value in vars(layer).items():
        listed = value.values() if isinstance(value, Mapping) else [value]
        if not name.startswith("_"):
            yield from ((name, each) for each in listed if isinstance(each, Tensor))


def stock_kept(config: PreTrainedConfig, layers: Sequence[LayerCache], length: int) -> list[int]:
    """Return how many cells transformers' own cache keeps of a text in each layer.

    Fewer than the text is long where a layer has a sliding window; ours keeps all, since a tree may
    be taken back.
    """
    if config.is_encoder_decoder:  # whose decoders have no windows
        return [length if each.cell_bytes else 0 for each in layers]
    cache = DynamicCache(config=config.get_text_config())
    cells = torch.empty(1, 1, length, 1, device=META)
    kept = [0] * len(layers)
    for number, each in enumerate(layers):
        if each.cell_bytes:
            cache.update(cells, cells, number)
            own: Any = cache.layers[number]
            kept[number] = own.keys.shape[2]
    return kept
