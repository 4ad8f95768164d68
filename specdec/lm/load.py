"""From a Hub id or a folder to a model that is proven to decode trees rightly, or a refusal."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specdec.core.digest import Signature, signature
from specdec.core.errors import UserError, require
from specdec.lm.adapter import merged, require_adapter
from specdec.lm.check import first_line, prove
from specdec.lm.check_states import states_differ
from specdec.lm.context import limited_length
from specdec.lm.folder import ZOO, Content, content_of
from specdec.lm.hf import HFCausalLM
from specdec.lm.mask import MaskKind
from specdec.lm.vocabularies import num_conflicts
from specdec.lm.weights import require_files

_OTHERS = (name for name in ALL_ATTENTION_FUNCTIONS if name != "sdpa" and "|" not in name)
ATTENTIONS = ("sdpa", "eager", *_OTHERS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPECTED = "a Hub id or a folder with a model, or zoo:verifier, zoo:draft"


def load(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str | None = None,
    vocabulary_of: str | None = None,
    field: str = "verifier.path",
    max_length: int | None = None,
    adapter: str | None = None,
) -> HFCausalLM:
    """Load a model and its tokenizer; the weights are shared with earlier loads of the same.

    Args:
        path: a Hub id, a folder, or `zoo:verifier` and `zoo:draft` for the embedded family.
        attention: transformers' `attn_implementation`; by default sdpa where the model has it.
        vocabulary_of: another model whose tokens must be the same, but for more at the end of
            either: a draft's are its verifier's.
        field: how error messages name the path.
        max_length: tokens of context that may be used; by default what its configuration says.
        adapter: a folder of LoRA weights that are merged into the model's.

    Raises:
        UserError: no such model or device, another vocabulary, or a model that trees cannot be
            decoded with.
    """
    path = str(path) if isinstance(path, Path) else path
    require_loadable(path, device, dtype, attention, vocabulary_of, field, max_length, adapter)
    with _named(field):
        model, error, differ = _proven(
            path,
            _files(path),
            checked_device(device),
            DTYPES[dtype],
            attention,
            adapter,
            () if adapter is None else signature(Path(adapter)),
        )
        tokenizer, context = _tokenizer(path), context_length(path, field, max_length)
        return HFCausalLM(model, tokenizer, error, differ, context)


def require_loadable(
    path: str,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str | None = None,
    vocabulary_of: str | None = None,
    field: str = "verifier.path",
    max_length: int | None = None,
    adapter: str | None = None,
) -> None:
    """Refuse what `load` would, as far as that shows without reading weights.

    Raises:
        UserError: as of `load`.
    """
    require(isinstance(path, str) and bool(path), field, path, EXPECTED)
    require(
        isinstance(dtype, str) and dtype in DTYPES, "dtype", dtype, "one of " + ", ".join(DTYPES)
    )
    checked_device(device)
    known = attention is None or attention in ATTENTIONS or "/" in str(attention)  # on the Hub
    require(known, "attention", attention, "one of " + ", ".join(ATTENTIONS))
    with _named(field):
        _require_model(path, _files(path))
        if vocabulary_of is not None:
            require_same_vocabulary(path, vocabulary_of)
    context_length(path, field, max_length)
    if adapter is not None:
        require_adapter(adapter, _beside(field, "adapter"))


@lru_cache(maxsize=256)
def _require_model(path: str, files: tuple[Signature, ...]) -> None:
    """Refuse what is no model that trees can be decoded with; `files` are those that lie there."""
    with _one_line(path):
        config = AutoConfig.from_pretrained(source(path))
        refuse_unsupported(config, path)
        loader_of(config, path)
        if files:
            require_files(path, Path(source(path)))
        _tokenizer(path)


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Put the option's name before a complaint that begins with its value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}={error}") from None


def require_same_vocabulary(path: str, other: str) -> None:
    """Refuse a draft of which tokens mean others, as far as both vocabularies go."""
    ours, theirs = _tokenizer(path).get_vocab(), _tokenizer(other).get_vocab()
    differing = num_conflicts(ours, theirs)
    if not differing:
        return
    raise UserError(
        f"{path!r}: its vocabulary of {len(ours)} tokens is not that of"
        f" verifier.path={other!r} with {len(theirs)} ({differing} entries differ);"
        " a draft model must share the verifier's tokenizer"
    )


def checked_device(device: str) -> torch.device:
    """Turn a name into a device that is there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device={device!r}: expected cpu, cuda or cuda:0, ...") from None
    require(found.type in ("cpu", "cuda"), "device", device, "cpu, cuda or cuda:0, ...")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: no GPU is available here; use device=cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device!r}: there are {torch.cuda.device_count()} GPUs")
    return found


def _tokenizer(path: str) -> PreTrainedTokenizerBase:
    return _tokenizer_of(path, _files(path))


def _files(path: str) -> tuple[Signature, ...]:
    """Return what changes when a folder does; of the Hub nothing changes within a process."""
    folder = Path(source(path))
    return signature(folder) if folder.is_dir() else ()


# What is remembered of a path is of the files that lay there then.
@lru_cache(maxsize=64)
def _tokenizer_of(path: str, files: tuple[Signature, ...]) -> PreTrainedTokenizerBase:
    with _one_line(path):
        return AutoTokenizer.from_pretrained(source(path))


# A verifier and its draft, and those of the job before: a sweep over models must not keep them all.
@lru_cache(maxsize=4)
def _proven(
    path: str,
    files: tuple[Signature, ...],
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None,
    adapter: str | None,
    adapter_files: tuple[Signature, ...],
) -> tuple[PreTrainedModel, float, str | None]:
    """Load, prove and remember one set of weights; returns what was found about it beside it."""
    with _one_line(path):
        refuse_unsupported(AutoConfig.from_pretrained(source(path)), path)
        model = _from_pretrained(path, dtype, attention)
        if adapter is not None:
            try:
                model = merged(model, adapter)
            except UserError as error:
                raise UserError(f"{path!r}: {error}") from None
        torch.nn.Module.to(model, device)  # typed, unlike the method of transformers
        model.eval()
    return model, prove(model, repr(path)), states_differ(model)


def _from_pretrained(path: str, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    try:
        return _with_all_weights(path, dtype, attention or "sdpa")
    except ValueError as error:
        # A few families (gpt_oss, gemma2, bloom) have no sdpa; the message names it.
        if attention is not None or "scaled_dot_product_attention" not in str(error):
            raise
        return _with_all_weights(path, dtype, "eager")


def _with_all_weights(path: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Refuse a checkpoint that lacks weights: transformers would make them up."""
    loader: Any = loader_of(AutoConfig.from_pretrained(source(path)), path)
    loaded: Any = loader.from_pretrained(
        source(path), dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(f"{path!r}: weights are missing: {', '.join(sorted(info['missing_keys']))}")
    return model


def loader_of(config: PreTrainedConfig, path: str) -> type[Any]:
    """Choose the class of transformers that loads a model; of images and text, to read text alone.

    Raises:
        UserError: it writes no text.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise UserError(f"{path!r}: {config.model_type} is no causal language model")


def vocabulary(path: str) -> tuple[PreTrainedTokenizerBase, int]:
    """Return a verifier's tokenizer and V, without loading its weights.

    Raises:
        UserError: no such model.
    """
    return _tokenizer(path), vocabulary_size(path)


def vocabulary_size(path: str, field: str = "verifier.path") -> int:
    """Return V, the width of a model's logits, without loading its weights.

    Raises:
        UserError: no such model; `field` is how the message names it.
    """
    require(isinstance(path, str) and bool(path), field, path, EXPECTED)
    with _named(field), _one_line(path):
        config = AutoConfig.from_pretrained(source(path))
        refuse_unsupported(config, path)
        return config.get_text_config().vocab_size


def context_length(path: str, field: str = "verifier.path", max_length: int | None = None) -> int:
    """Return how many tokens a model can read, without loading its weights.

    Raises:
        UserError: no such model, or no such `max_length`; `field` is how the message names it.
    """
    require(isinstance(path, str) and bool(path), field, path, EXPECTED)
    with _named(field), _one_line(path):
        config = AutoConfig.from_pretrained(source(path)).get_text_config()
    return limited_length(config, max_length, _beside(field, "max_length"))


def _beside(field: str, name: str) -> str:
    """Name another option of the model that `field` names the path of."""
    return f"{field.rpartition('.')[0]}.{name}".lstrip(".")


def width(path: str) -> int:
    """Return H, the size of a verifier's hidden states, without loading its weights."""
    with _named("verifier.path"), _one_line(path):
        return AutoConfig.from_pretrained(source(path)).get_text_config().hidden_size


def source(path: str) -> str:
    """Turn `zoo:NAME` into a folder; anything else is what it is.

    Raises:
        UserError: there is no such model in the zoo.
    """
    if not path.startswith("zoo:"):
        return path
    folder = ZOO / path.removeprefix("zoo:")
    if not (folder / "config.json").is_file():
        raise UserError(f"{path!r}: not in the zoo; expected {EXPECTED}")
    return str(folder)


def name_of(source: str) -> str:
    """Turn a folder of the zoo back into `zoo:NAME`: where it lies differs between machines."""
    folder = Path(source).resolve()
    return f"zoo:{folder.name}" if folder.parent == ZOO.resolve() else source


@contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Turn what transformers raises about a path into one line for the user."""
    _refuse_heads(path)
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(f"{path!r}: not loaded; expected {EXPECTED} ({reason})") from None


def _refuse_heads(path: str) -> None:
    """Say what is there in place of a model, where transformers would only miss a `model_type`."""
    try:
        there = content_of(path)
    except UserError as error:
        raise UserError(f"{path!r}: {error}") from None
    if there in (Content.MedusaHeads, Content.ChainedHeads):
        assert there is not None
        raise UserError(f"{path!r}: no model; {there.value} proposer.path={path}")


def refuse_unsupported(config: PreTrainedConfig, path: str) -> None:
    """Refuse what has no plain KV cache, before any weights are read."""
    if config.is_encoder_decoder:
        raise UserError(
            f"{path!r}: {config.model_type} is an encoder-decoder model;"
            " only decoder-only models are supported"
        )
    text_config = config.get_text_config()
    needed = ("num_hidden_layers", "vocab_size", "max_position_embeddings")
    missing = [name for name in needed if not isinstance(getattr(text_config, name, None), int)]
    if missing:
        raise UserError(
            f"{path!r}: {config.model_type} has no {', '.join(missing)} and so"
            " no KV cache of positions; recurrent models are not supported"
        )
    try:
        MaskKind.of(text_config)
    except UserError as error:
        raise UserError(f"{path!r}: {error}") from None
