"""From a Hub id or a folder to a model that is proven to decode trees rightly, or a refusal."""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specdec.cache.policy import CachePolicy
from specdec.core.digest import Signature, signature
from specdec.core.errors import UserError, require
from specdec.core.room import Room
from specdec.core.vouching import require_as_trained
from specdec.lm.accounting import Unaccounted
from specdec.lm.adapter import merged, require_adapter
from specdec.lm.cached_as import cached_as, limit_of, require_cache, require_for_states
from specdec.lm.check import prove
from specdec.lm.check_encoder_decoder import no_trees_of
from specdec.lm.check_prefix import prefix_error, require_two_ways
from specdec.lm.check_states import states_differ
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.context import limited_length
from specdec.lm.devices import DTYPES, checked_device, require_dtype, settled_dtype
from specdec.lm.draft_vocabulary import vocabulary_between
from specdec.lm.encoder_decoder_options import require_for_sources
from specdec.lm.from_checkpoint import from_checkpoint, loader_of, weightless
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_kinds import is_recurrent
from specdec.lm.mask import PREFIX_LM, MaskKind
from specdec.lm.placement import SPREAD, Placement, require_shardable, require_spreadable
from specdec.lm.quantization import (
    INT8,
    method_of,
    quantized,
    require_loadable_weights,
    require_once,
    require_quantization,
    while_loading,
)
from specdec.lm.source_room import require_sides, room_of
from specdec.lm.translation import SAME
from specdec.lm.weights import require_files
from specdec.runtime.choice import require_runtime

_OTHERS = (name for name in ALL_ATTENTION_FUNCTIONS if name != "sdpa" and "|" not in name)
ATTENTIONS = ("sdpa", "eager", *_OTHERS)


def load(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str | None = None,
    vocabulary_of: str | Mapping[str, Any] | None = None,
    field: str = "path",
    max_length: int | None = None,
    adapter: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    runtime: str = "eager",
    quantization: str | None = None,
    cache: CachePolicy | str | None = None,
    tp_plan: str | None = None,
    vocabulary: str = SAME,
) -> HFCausalLM:
    """Load a model and its tokenizer; the weights are shared with earlier loads of the same.

    Args:
        path: a Hub id, a folder, or `zoo:verifier` and `zoo:draft` for the embedded family.
        device: where it runs: cpu, cuda, cuda:1, or auto: spread over all GPUs and, what they
            cannot hold, the CPU; a draft model beside its verifier's vocabulary head.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where the device computes in it.
        attention: transformers' `attn_implementation`; by default sdpa where the model has it. Or
            prefix_lm: prompts see themselves in both directions, by the default implementation.
        vocabulary_of: another model whose tokens must be the same, but for more at the end of
            either: a draft's are its verifier's. Its path, or `path` with the two last options.
        field: how error messages name the path, where it is not this parameter that was told.
        max_length: tokens of context that may be used; by default what its configuration says.
        adapter: a folder of LoRA weights that are merged into the model's.
        revision: a branch, a tag or a commit of the Hub.
        trust_remote_code: run code that comes with the model; nobody has looked at what it does.
        runtime: how steps are run: eager, compiled, cuda_graphs (on a GPU), or auto: the fastest
            that is worth its preparation.
        quantization: round the weights: int8, int4, bnb_8bit or bnb_4bit; see
            `specdec.lm.quantization`. None: they are as the checkpoint has them.
        cache: what becomes of the keys and values of a text that grows: a policy of
            `specdec.cache`, or none: every step reads the whole text again; None: all
            are kept.
        tp_plan: auto: each process of torchrun holds a part of each weight, by the plan that
            transformers has for the model; None: each holds all.
        vocabulary: same: the tokens of `vocabulary_of`. Of a draft with another tokenizer
            intersection, to draft the tokens that both have, or strings, to draft text.

    Returns:
        The model behind the protocol `CausalLM`, proven to decode trees rightly.

    Raises:
        UserError: no such model, revision or device, another vocabulary, code that is not trusted,
            or a model that trees cannot be decoded with.
    """
    path = str(path) if isinstance(path, Path) else path
    checkpoint = Checkpoint(path, revision, trust_remote_code, field)
    require_quantization(quantization, checkpoint.option("quantization"))
    require_cache(cache, runtime, attention)
    _require(checkpoint, device, dtype, attention, max_length, adapter, runtime)
    other = None if vocabulary_of is None else Checkpoint.of(vocabulary_of)
    translation = vocabulary_between(checkpoint, other, vocabulary, attention)
    _require_placed(checkpoint, quantization, device, runtime, adapter, tp_plan)
    require_for_states(checkpoint.config, cache, runtime, checkpoint.called)
    require_for_sources(checkpoint.config, cache, runtime, checkpoint.called)
    _require_room(checkpoint, device, dtype, cache)
    there = _placement(device, vocabulary_of, tp_plan)
    kind, adapted = DTYPES[settled_dtype(dtype, there.device)], _signature_of(adapter)
    prompt_mask = PREFIX_LM if attention == PREFIX_LM else None
    implementation = None if prompt_mask else attention
    model, error, differ, no_trees = _proven(
        checkpoint, checkpoint.files, there, kind, implementation, adapter, adapted, quantization
    )
    if prompt_mask:
        error = max(error, prefix_error(model, checkpoint.called))
    given = (checkpoint.tokenizer, error, differ, max_length, runtime)
    found = cached_as(cache, model, *given, prompt_mask=prompt_mask)
    found.no_trees = no_trees
    found.commit = checkpoint.commit
    found.quantization = quantization or method_of(checkpoint.config)
    found.translation = translation
    if there.is_spread:
        _heads_of_spread[checkpoint] = found.device
    return found


# Where the logits of models that are spread over devices come out.
_heads_of_spread: dict[Checkpoint, torch.device] = {}


def _placement(
    device: str, vocabulary_of: str | Mapping[str, Any] | None, tp_plan: str | None = None
) -> Placement:
    """Say where a model goes: a draft model is not spread, but goes where its verifier says."""
    found = Placement.of(device, tp_plan)
    if not found.is_spread or vocabulary_of is None:
        return found
    return Placement(_heads_of_spread.get(Checkpoint.of(vocabulary_of), found.device))


def _signature_of(adapter: str | None) -> tuple[Signature, ...]:
    return () if adapter is None else signature(Path(adapter))


def require_loadable(
    path: str,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str | None = None,
    vocabulary_of: str | Mapping[str, Any] | None = None,
    field: str = "path",
    max_length: int | None = None,
    adapter: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    runtime: str = "eager",
    quantization: str | None = None,
    cache: CachePolicy | str | None = None,
    tp_plan: str | None = None,
    vocabulary: str = SAME,
) -> None:
    """Refuse what `load` would, as far as that shows without reading weights.

    Raises:
        UserError: as of `load`.
    """
    checkpoint = Checkpoint(path, revision, trust_remote_code, field)
    require_quantization(quantization, checkpoint.option("quantization"))
    require_cache(cache, runtime, attention)
    _require(checkpoint, device, dtype, attention, max_length, adapter, runtime)
    other = None if vocabulary_of is None else Checkpoint.of(vocabulary_of)
    vocabulary_between(checkpoint, other, vocabulary, attention)
    _require_placed(checkpoint, quantization, device, runtime, adapter, tp_plan)
    require_for_states(checkpoint.config, cache, runtime, checkpoint.called)
    require_for_sources(checkpoint.config, cache, runtime, checkpoint.called)
    _require_room(checkpoint, device, dtype, cache)


def _require(
    checkpoint: Checkpoint,
    device: str,
    dtype: str,
    attention: str | None,
    max_length: int | None,
    adapter: str | None,
    runtime: str,
) -> None:
    require_dtype(dtype)
    require_runtime(runtime, checked_device(device))
    every = (*ATTENTIONS, PREFIX_LM)
    known = attention is None or attention in every or "/" in str(attention)  # on the Hub
    require(known, "attention", attention, "one of " + ", ".join(every))
    _require_model(checkpoint, checkpoint.files)
    if attention == PREFIX_LM:
        require_two_ways(checkpoint.config, checkpoint.called)
    room_for(checkpoint, max_length)
    if adapter is not None:
        require_adapter(adapter, checkpoint.option("adapter"))


def _require_placed(
    checkpoint: Checkpoint,
    quantization: str | None,
    device: str,
    runtime: str,
    adapter: str | None,
    tp_plan: str | None,
) -> None:
    """Refuse weights of fewer bits, or in several places, that cannot be had or run here."""
    config = checkpoint.config
    others = {"quantization": quantization or method_of(config), "adapter": adapter}
    field = checkpoint.option("tp_plan")
    require_shardable(tp_plan, config, device, runtime, field, others)
    if config.is_encoder_decoder and (device == SPREAD or tp_plan is not None):
        option = f"device={device!r}" if device == SPREAD else f"{field}={tp_plan!r}"
        raise UserError(f"{option}: {config.model_type} has an encoder; expected one device")
    require_spreadable(device, runtime, adapter, quantization)
    require_loadable_weights(config, checkpoint.called)
    require_once(config, quantization, runtime, adapter, checkpoint.option("quantization"))


def _require_room(
    checkpoint: Checkpoint, device: str, dtype: str, cache: CachePolicy | str | None
) -> None:
    """Refuse a limit in bytes that has no room for two cells of the model."""
    if isinstance(cache, CachePolicy) and cache.max_bytes is not None:
        kind = DTYPES[settled_dtype(dtype, checked_device(device))]
        with suppress(Unaccounted):  # then it shows when it is loaded
            limit_of(cache, weightless(checkpoint, kind))


@lru_cache(maxsize=256)
def _require_model(checkpoint: Checkpoint, files: tuple[Signature, ...]) -> None:
    """Refuse what is no model that trees can be decoded with; `files` are those that lie there."""
    config = checkpoint.config
    refuse_unsupported(config, checkpoint.called)
    loader_of(config, checkpoint)
    if files:
        require_files(checkpoint.called, Path(checkpoint.source))
        require_as_trained(Path(checkpoint.source), checkpoint.called)
    assert checkpoint.tokenizer is not None


# A verifier and its draft, and those of the job before: a sweep over models must not keep them all.
@lru_cache(maxsize=4)
def _proven(
    checkpoint: Checkpoint,
    files: tuple[Signature, ...],
    placement: Placement,
    dtype: torch.dtype,
    attention: str | None,
    adapter: str | None,
    adapter_files: tuple[Signature, ...],
    quantization: str | None,
) -> tuple[PreTrainedModel, float, str | None, str | None]:
    """Load, prove and remember one set of weights; returns what was found about it beside it."""
    refuse_unsupported(checkpoint.config, checkpoint.called)
    with checkpoint.complaining():
        rounding = while_loading(quantization, dtype)
        rounds = rounding is not None or method_of(checkpoint.config) is not None
        how = placement.arguments(rounds)
        if rounding is not None:
            how["quantization_config"] = rounding
        model = from_checkpoint(checkpoint, dtype, attention, how)
        if adapter is not None:
            try:
                model = merged(model, adapter)
            except UserError as error:
                raise UserError(f"{checkpoint.called}: {error}") from None
        placement.placed(model)
        model = quantized(model) if quantization == INT8 else model
        model.eval()
    error = prove(model, checkpoint.called)
    return model, error, states_differ(model), no_trees_of(model)


def vocabulary_size(checkpoint: Checkpoint) -> int:
    """Return V, the width of a model's logits, without loading its weights.

    Raises:
        UserError: no such model.
    """
    config = checkpoint.config
    refuse_unsupported(config, checkpoint.called)
    return config.get_text_config(decoder=True).vocab_size


def room_for(checkpoint: Checkpoint, max_length: int | None = None) -> Room:
    """Return how many tokens a model can read, without loading its weights.

    Raises:
        UserError: no such model, or no such `max_length`.
    """
    config, option = checkpoint.config, checkpoint.option("max_length")
    if config.is_encoder_decoder:
        return room_of(config, max_length, option)
    return Room(limited_length(config.get_text_config(), max_length, option))


def width(checkpoint: Checkpoint) -> int:
    """Return H, the size of a model's hidden states, without loading its weights."""
    return checkpoint.config.get_text_config(decoder=True).hidden_size


def refuse_unsupported(config: PreTrainedConfig, called: str) -> None:
    """Refuse what cannot be rewound, before any weights are read; complaints begin `called`."""
    if config.is_encoder_decoder:
        return require_sides(config, called)
    text_config = config.get_text_config()
    needed = ["num_hidden_layers", "vocab_size"]
    if not is_recurrent(config):
        needed.append("max_position_embeddings")
    missing = [name for name in needed if not isinstance(getattr(text_config, name, None), int)]
    if missing:
        raise UserError(
            f"{called}: {config.model_type} has no {', '.join(missing)} and so no KV cache of"
            " positions, nor recurrent layers that transformers knows as such"
        )
    try:
        MaskKind.of(text_config)
    except UserError as error:
        raise UserError(f"{called}: {error}") from None
