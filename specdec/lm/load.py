"""From a Hub id or a folder to a model that is proven to decode trees rightly, or a refusal."""

from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specdec.core.errors import UserError, require
from specdec.lm.check import prove
from specdec.lm.hf import HFCausalLM
from specdec.lm.mask import MaskKind

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ZOO = Path(__file__).parent.parent / "zoo"


def load(
    path: str, device: str = "cpu", dtype: str = "float32", attention: str | None = None,
    field: str = "verifier.path",
) -> HFCausalLM:
    """Load a model and its tokenizer; the weights are shared with earlier loads of the same.

    Args:
        path: a Hub id, a folder, or `zoo:verifier` and `zoo:draft` for the embedded family.
        attention: transformers' `attn_implementation`; by default sdpa where the model has it.
        field: how error messages name the path.

    Raises:
        UserError: no such model or device, or a model that trees cannot be decoded with.
    """
    require(isinstance(path, str) and bool(path), field, path, "a Hub id or a folder")
    require(dtype in DTYPES, "dtype", dtype, "one of " + ", ".join(DTYPES))
    return HFCausalLM(*_pretrained(path, checked_device(device), DTYPES[dtype], attention, field))


def checked_device(device: str) -> torch.device:
    """Turn a name into a device that is there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device={device!r}: expected cpu, cuda or cuda:0, ...") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: no GPU is available here; use device=cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device!r}: there are {torch.cuda.device_count()} GPUs")
    return found


@cache
def _pretrained(
    path: str, device: torch.device, dtype: torch.dtype, attention: str | None, field: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load, check and remember one set of weights."""
    source = str(ZOO / path.removeprefix("zoo:")) if path.startswith("zoo:") else path
    try:
        config = AutoConfig.from_pretrained(source)
        refuse_unsupported(config, field, path)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = _model(source, dtype, attention)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{field}={path!r}: cannot be loaded ({reason})") from None
    model = model.to(device).eval()
    prove(model, f"{field}={path!r}")
    return model, tokenizer


def _model(source: str, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    if attention is not None:
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=attention
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="sdpa"
        )
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="eager"
        )


def refuse_unsupported(config: PreTrainedConfig, field: str, path: str) -> None:
    """Refuse what has no plain KV cache, before any weights are read."""
    if config.is_encoder_decoder:
        raise UserError(f"{field}={path!r}: {config.model_type} is an encoder-decoder model;"
                        " only decoder-only models are supported")
    text_config = config.get_text_config()
    needed = ("num_hidden_layers", "vocab_size", "max_position_embeddings")
    missing = [name for name in needed if not isinstance(getattr(text_config, name, None), int)]
    if missing:
        raise UserError(f"{field}={path!r}: {config.model_type} has no {', '.join(missing)} and so"
                        " no KV cache of positions; recurrent models are not supported")
    MaskKind.of(text_config)
