"""Tell one model from another: heads trained on one are worth nothing on another."""

import hashlib
import json
from collections.abc import Mapping

import torch

from specdec.core.errors import UserError
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import name_of

# Where a model lies and how it is run, as opposed to what it is.
DIGESTS = ("config", "tokenizer", "weights")
INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def fingerprint(lm: HFCausalLM) -> dict[str, str]:
    """Return the model's path and dtype, and digests of configuration, tokenizer and weights."""
    config = lm.model.config.to_dict()
    assert lm.tokenizer is not None
    return {
        "path": name_of(str(lm.model.config._name_or_path)),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "config": _digest({name: config[name] for name in config if name not in INCIDENTAL}),
        "tokenizer": _digest(lm.tokenizer.get_vocab()),
        "weights": _probe(lm, torch.bfloat16),
        "weights_in_half": _probe(lm, torch.float16),
    }


def require_trained_on(
    lm: HFCausalLM, theirs: Mapping[str, str] | None, where: str, force: bool
) -> None:
    """Refuse heads of another model, wherever either lies and whatever its dtype.

    Raises:
        UserError: configuration, tokenizer or weights differ, and `force` is off.
    """
    if force:
        return
    ours = fingerprint(lm)
    known = theirs or {}
    # What float16 rounds away, bf16 may keep, and the other way round: compare in the coarser one.
    half = "float16" in (ours["dtype"], known.get("dtype"))
    names = ("config", "tokenizer", "weights_in_half") if half else DIGESTS
    differing = [name.split("_")[0] for name in names if ours[name] != known.get(name)]
    if differing:
        raise UserError(
            f"{where}: trained on another verifier, {known.get('path')!r} ({', '.join(differing)}"
            " differ); set proposer.force=true to use it all the same"
        )


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _probe(lm: HFCausalLM, dtype: torch.dtype) -> str:
    """A digest of the beginning of every weight: an adapter may have changed any few of them.

    Rounded to a type that is no finer than the model's, so that it does not depend on that.
    """
    weights = lm.model.parameters()
    pieces = [weight.detach().flatten()[:512].to(dtype).float().cpu() for weight in weights]
    return hashlib.sha256(torch.cat(pieces).numpy().tobytes()).hexdigest()[:16]
