"""Tell one model from another: heads trained on one are worth nothing on another.

Every element of every weight counts. Two models that run in one type are told apart by the exact
values; of two types, by what the coarser one keeps.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.core.digest import digest
from specdec.core.errors import UserError
from specdec.core.plug_ins import sources_of
from specdec.lm.checkpoint import name_of, on_card
from specdec.lm.hf import HFCausalLM
from specdec.lm.placement import is_whole, tensors_of
from specdec.lm.quantization import as_numbers

DIGESTS = ("config", "tokenizer", "weights")
COARSER = ("bfloat16", "float16")
# Where a model lies and how it is run, as opposed to what it is.
DYNAMIC = "transformers_modules"  # where transformers put the code that comes with models
INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def fingerprint(lm: HFCausalLM) -> dict[str, str]:
    """Return the model's path and dtype, and digests of configuration, tokenizer and weights.

    `weights` are the exact values, `weights_in_bfloat16` and `weights_in_float16` the rounded ones.
    """
    config = lm.model.config.to_dict()
    settings = {name: config[name] for name in config if name not in INCIDENTAL}
    settings |= {"prompt_mask": lm.prompt_mask} if lm.prompt_mask else {}
    dtype = lm.dtype
    exact = _weights_digest(lm, None)
    uniform = all(p.dtype == lm.model.dtype for p in lm.model.parameters())
    rounded = {
        name: exact if uniform and name == dtype else _weights_digest(lm, getattr(torch, name))
        for name in COARSER
    }
    return {
        "path": name_of(str(lm.model.config._name_or_path)),
        "dtype": dtype,
        "config": _digest({**settings, **_own_code(lm)}),
        "tokenizer": tokenizer_digest(_tokenizer_of(lm)),
        "weights": exact,
        **{f"weights_in_{name}": digest for name, digest in rounded.items()},
    }


def described(lm: HFCausalLM) -> dict[str, str]:
    """Return `fingerprint`, and the commit of a model that came from the Hub."""
    return {**fingerprint(lm), **({} if lm.commit is None else {"commit": lm.commit})}


def card_name(lm: HFCausalLM) -> str:
    """Return what cards call a model."""
    return on_card(name_of(str(lm.model.config._name_or_path)), lm.commit)


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Name what of two fingerprints is not the same: config, tokenizer or weights.

    Wherever the models lie. Weights of different dtypes are compared in the coarser one: what
    float16 rounds away, bfloat16 may keep, and the other way round.
    """
    types = {ours["dtype"], theirs.get("dtype")}
    weights = "weights"
    if len(types) > 1:
        weights += "_in_float16" if "float16" in types else "_in_bfloat16"
    keys = {"config": "config", "tokenizer": "tokenizer", "weights": weights}
    return [name for name, key in keys.items() if ours[key] != theirs.get(key)]


def require_trained_on(
    lm: HFCausalLM, theirs: Mapping[str, str] | None, where: str, force: bool
) -> None:
    """Refuse heads of another model, wherever either lies and whatever its dtype.

    Raises:
        UserError: configuration, tokenizer or weights differ, and `force` is off.
    """
    if force:
        return
    known = theirs or {}
    differing = differences(fingerprint(lm), known)
    if differing:
        raise UserError(
            f"{where}: trained on another verifier, {known.get('path')!r} ({', '.join(differing)}"
            " differ); set proposer.force=true to use it all the same"
        )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the digest of what makes tokens of a text."""
    return _digest(_tokenizer_parts(tokenizer))


def require_tokens_of(tokenizer: PreTrainedTokenizerBase | None, proposer: object) -> None:
    """Refuse texts that a proposer looks up, if they are tokens of another tokenizer's.

    Raises:
        UserError: they are. A verifier without a tokenizer has nothing to compare.
    """
    known = getattr(proposer, "tokenizer_digest", None)
    if known is not None and tokenizer is not None and known != tokenizer_digest(tokenizer):
        raise UserError(
            f"{type(proposer).__qualname__}: its datastore holds tokens of another tokenizer than"
            " the verifier's; expected one that was built with verifier.path of this verifier"
        )


def _tokenizer_of(lm: HFCausalLM) -> PreTrainedTokenizerBase:
    assert lm.tokenizer is not None
    return lm.tokenizer


def _own_code(lm: HFCausalLM) -> dict[str, str]:
    """Return digests of the Python files that came with a model, if it is one of those."""
    module = sys.modules[type(lm.model).__module__]
    if module.__name__.split(".")[0] != DYNAMIC:
        return {}
    # The packages around it are empty, and named after where it lay.
    own = [file for file in sources_of(module).values() if file.name != "__init__.py"]
    return {file.name: digest(file) for file in own}


def _tokenizer_parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what makes tokens of a text: vocabulary, merges, and what comes before."""
    found: dict[str, Any] = {"vocab": tokenizer.get_vocab()}
    backend = getattr(tokenizer, "backend_tokenizer", None)  # the slow ones have none
    if backend is not None:
        written = json.loads(backend.to_str())
        found |= {name: written.get(name) for name in ("normalizer", "pre_tokenizer")}
        merges = written["model"].get("merges") or ()
        found["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    return found


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights_digest(lm: HFCausalLM, dtype: torch.dtype | None) -> str:
    """Return a digest of all weights and saved buffers, as they are or rounded to a dtype.

    Tied weights count once. Hashing leaves Python's lock, so that tensors are read side by side.
    """

    def of_one(tensor: Tensor) -> str:
        return _tensor_digest(tensor, dtype)

    if not is_whole(lm.model):  # weights may have to be fetched, one after another
        pieces = list(map(of_one, tensors_of(lm.model)))
    else:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
            pieces = list(threads.map(of_one, tensors_of(lm.model)))
    return hashlib.sha256("\n".join(pieces).encode()).hexdigest()[:16]


@torch.no_grad()
def _tensor_digest(tensor: Tensor, dtype: torch.dtype | None) -> str:
    given = as_numbers(tensor.detach())
    if dtype is not None and given.is_floating_point():
        given = given.to(dtype)
    plain = given.contiguous().cpu().flatten().view(torch.uint8)
    return f"{list(tensor.shape)} {hashlib.sha256(plain.numpy().data).hexdigest()}"
