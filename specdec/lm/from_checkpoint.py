"""A model of transformers from a checkpoint, with all of its weights, or without any."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from specdec.core.errors import UserError
from specdec.lm.accounting import on_meta
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.source_room import require_sides

SHOWN = 3  # names of weights in a line


def from_checkpoint(
    checkpoint: Checkpoint, dtype: torch.dtype, attention: str | None, how: Mapping[str, Any]
) -> PreTrainedModel:
    """Load a model with its weights.

    Args:
        checkpoint: where it lies.
        dtype: of the weights.
        attention: transformers' `attn_implementation`; None: sdpa where the model has it.
        how: further arguments of `from_pretrained`: where to, and rounded to what.

    Raises:
        UserError: weights are missing, or have other sizes than the configuration says.
    """
    try:
        return _with_all_weights(checkpoint, dtype, attention or "sdpa", how)
    except ValueError as error:
        # A few families (gpt_oss, gemma2, bloom) have no sdpa; the message names it.
        if attention is not None or "scaled_dot_product_attention" not in str(error):
            raise
        return _with_all_weights(checkpoint, dtype, "eager", how)


def _with_all_weights(
    checkpoint: Checkpoint, dtype: torch.dtype, attention: str, how: Mapping[str, Any]
) -> PreTrainedModel:
    """Refuse a checkpoint that lacks weights: transformers would make them up."""
    config = checkpoint.config
    loader = loader_of(config, checkpoint)
    reference = _own_classes(config, checkpoint).get(loader.__name__)
    kind: Any = loader if reference is None else _own_class(reference, loader, checkpoint)
    loaded: Any = kind.from_pretrained(
        checkpoint.source,
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # since they are refused by name below
        **checkpoint.how,
        **how,
    )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{checkpoint.called}: weights are missing: {_some(missing)}")
    unlike = sorted(
        f"{name} is {list(there)}, not {list(expected)}"
        for name, there, expected in info["mismatched_keys"]
    )
    if unlike:
        what = "weights have other sizes than config.json says"
        raise UserError(f"{checkpoint.called}: {what}: {_some(unlike)}")
    return model


def weightless(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model on the meta device by its configuration alone, whether or not it can decode.

    Raises:
        UserError: transformers has no such model, or its configuration is damaged.
    """
    config = checkpoint.config
    with checkpoint.complaining():
        if config.is_encoder_decoder:
            return on_meta(AutoModelForSeq2SeqLM.from_config, config, dtype)
        loader = loader_of(config, checkpoint)
        reference = _own_classes(config, checkpoint).get(loader.__name__)
        if reference is None:
            return on_meta(loader.from_config, config, dtype)
        return on_meta(_own_class(reference, loader, checkpoint)._from_config, config, dtype)


def _some(names: Sequence[str]) -> str:
    """List the first few of many."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def loader_of(config: PreTrainedConfig, checkpoint: Checkpoint) -> type[Any]:
    """Choose the class of transformers that loads a model; of images and text, to read text alone.

    Raises:
        UserError: it writes no text.
    """
    trusted = _own_classes(config, checkpoint)
    if config.is_encoder_decoder:
        require_sides(config, checkpoint.called)
        return AutoModelForSeq2SeqLM
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in trusted:
        return AutoModelForCausalLM
    shown = "AutoModelForImageTextToText" in trusted
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or shown:
        return AutoModelForImageTextToText
    raise UserError(f"{checkpoint.called}: {config.model_type} is no causal language model")


def _own_classes(config: PreTrainedConfig, checkpoint: Checkpoint) -> Mapping[str, str]:
    """Return what comes with a model and may run: references to classes, by what they stand for."""
    found: Mapping[str, str] = getattr(config, "auto_map", None) or {}
    return found if checkpoint.trust_remote_code else {}


def _own_class(reference: str, loader: type[Any], checkpoint: Checkpoint) -> type[Any]:
    """Import the class of a model from the code that comes with it.

    The loaders of transformers would take the first class of a process for all configurations of
    one class, whatever code lies beside the next.
    """
    kind: type[Any] = get_class_from_dynamic_module(
        reference, checkpoint.source, revision=checkpoint.revision
    )
    kind.register_for_auto_class(loader)  # so that it is saved with its code
    if issubclass(kind, GenerationMixin):  # which reads the settings for decoding
        return kind
    return type(kind.__name__, (kind, GenerationMixin), {"__module__": kind.__module__})
