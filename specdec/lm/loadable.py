"""Can a model be loaded, and does it fit? Looked at before any weights are read."""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specdec.cache.policy import CachePolicy
from specdec.core.digest import Signature
from specdec.core.errors import UserError, require
from specdec.core.room import Room
from specdec.core.vouching import require_as_trained
from specdec.lm.accounting import Unaccounted
from specdec.lm.adapter import require_adapter
from specdec.lm.cached_as import limit_of, require_cache, require_for_states
from specdec.lm.check_prefix import require_two_ways
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.context import limited_length
from specdec.lm.devices import DTYPES, checked_device, require_dtype, settled_dtype
from specdec.lm.draft_vocabulary import vocabulary_between
from specdec.lm.encoder_decoder_options import require_for_sources
from specdec.lm.from_checkpoint import loader_of, weightless
from specdec.lm.layer_kinds import is_recurrent
from specdec.lm.mask import PREFIX_LM, MaskKind
from specdec.lm.placement import SPREAD, require_shardable, require_spreadable
from specdec.lm.quantization import (
    method_of,
    require_loadable_weights,
    require_once,
    require_quantization,
)
from specdec.lm.source_room import require_sides, room_of
from specdec.lm.translation import SAME
from specdec.lm.weights import require_files
from specdec.runtime.choice import require_runtime

_OTHERS = (name for name in ALL_ATTENTION_FUNCTIONS if name != "sdpa" and "|" not in name)
ATTENTIONS = ("sdpa", "eager", *_OTHERS)


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
