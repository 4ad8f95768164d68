"""From a Hub id or a folder to a model that is proven to decode trees rightly, or a refusal."""

from collections.abc import Iterator
from contextlib import contextmanager
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
    path: str,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str | None = None,
    vocabulary_of: str | None = None,
    field: str = "verifier.path",
) -> HFCausalLM:
    """Load a model and its tokenizer; the weights are shared with earlier loads of the same.

    Args:
        path: a Hub id, a folder, or `zoo:verifier` and `zoo:draft` for the embedded family.
        attention: transformers' `attn_implementation`; by default sdpa where the model has it.
        vocabulary_of: another model whose tokenizer must be the same: a draft's is its verifier's.
        field: how error messages name the path.

    Raises:
        UserError: no such model or device, another vocabulary, or a model that trees cannot be
            decoded with.
    """
    require(isinstance(path, str) and bool(path), field, path, "a Hub id or a folder")
    require(dtype in DTYPES, "dtype", dtype, "one of " + ", ".join(DTYPES))
    placed = checked_device(device)
    if vocabulary_of is not None:
        require_same_vocabulary(path, vocabulary_of, field)
    model, error = _proven(path, placed, DTYPES[dtype], attention, field)
    return HFCausalLM(model, _tokenizer(path, field), tree_error=error)


def require_same_vocabulary(path: str, other: str, field: str) -> None:
    """Compare token for token: sizes of logits are padded and say nothing about the tokenizer."""
    ours, theirs = (
        _tokenizer(path, field).get_vocab(),
        _tokenizer(other, "verifier.path").get_vocab(),
    )
    if ours == theirs:
        return
    differing = len(set(ours.items()) ^ set(theirs.items()))
    raise UserError(
        f"{field}={path!r}: its vocabulary of {len(ours)} tokens is not that of"
        f" verifier.path={other!r} with {len(theirs)} ({differing} entries differ);"
        " a draft model must share the verifier's tokenizer"
    )


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
def _tokenizer(path: str, field: str) -> PreTrainedTokenizerBase:
    with _one_line(path, field):
        return AutoTokenizer.from_pretrained(_source(path))


@cache
def _proven(
    path: str, device: torch.device, dtype: torch.dtype, attention: str | None, field: str
) -> tuple[PreTrainedModel, float]:
    """Load, prove and remember one set of weights; returns what `prove` measured beside it."""
    with _one_line(path, field):
        refuse_unsupported(AutoConfig.from_pretrained(_source(path)), field, path)
        model = _from_pretrained(_source(path), dtype, attention)
        torch.nn.Module.to(model, device)  # typed, unlike the method of transformers
        model.eval()
    return model, prove(model, f"{field}={path!r}")


def _from_pretrained(source: str, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=attention or "sdpa"
        )
    except ValueError as error:
        # A few families (gpt_oss, gemma2, bloom) have no sdpa; the message names it.
        if attention is not None or "scaled_dot_product_attention" not in str(error):
            raise
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="eager"
        )


def _source(path: str) -> str:
    return str(ZOO / path.removeprefix("zoo:")) if path.startswith("zoo:") else path


@contextmanager
def _one_line(path: str, field: str) -> Iterator[None]:
    """Turn what transformers raises about a path into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{field}={path!r}: cannot be loaded ({reason})") from None


def refuse_unsupported(config: PreTrainedConfig, field: str, path: str) -> None:
    """Refuse what has no plain KV cache, before any weights are read."""
    if config.is_encoder_decoder:
        raise UserError(
            f"{field}={path!r}: {config.model_type} is an encoder-decoder model;"
            " only decoder-only models are supported"
        )
    text_config = config.get_text_config()
    needed = ("num_hidden_layers", "vocab_size", "max_position_embeddings")
    missing = [name for name in needed if not isinstance(getattr(text_config, name, None), int)]
    if missing:
        raise UserError(
            f"{field}={path!r}: {config.model_type} has no {', '.join(missing)} and so"
            " no KV cache of positions; recurrent models are not supported"
        )
    MaskKind.of(text_config)
