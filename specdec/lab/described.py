"""What an object is, in plain values: so that objects, as options do, identify a training."""

from collections.abc import Set
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import cast

from torch import Tensor

from specdec.core.digest import digest_of
from specdec.core.narrowing import is_mapping, is_sequence
from specdec.core.plug_ins import code_digest
from specdec.lm.fingerprint import DIGESTS, fingerprint
from specdec.lm.hf import HFCausalLM


def described(value: object) -> object:
    """Return plain values that are equal if and only if two objects would do the same.

    Of an object its class, the source of a class from elsewhere, and all that it holds; of a model
    the digests of its configuration, tokenizer and weights; of a tensor that of its elements.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, HFCausalLM):
        known = fingerprint(value)
        return {name: known[name] for name in (*DIGESTS, "dtype")}
    if isinstance(value, Tensor):
        return [list(value.shape), digest_of(value.detach().cpu().numpy().tobytes())]
    if isinstance(value, Enum | Path):
        return str(value)
    if is_mapping(value):
        return {str(name): described(each) for name, each in value.items()}
    if is_sequence(value):
        return [described(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, cast(Set[object], value)))
    return described_class(value if callable(value) and not _holds(value) else type(value)) | {
        name.strip("_"): described(each) for name, each in _holds(value).items()
    }


def described_class(made_by: object) -> dict[str, object]:
    """Return the dotted name of a class or function, and a digest of its source if not ours."""
    name = getattr(made_by, "__qualname__", type(made_by).__qualname__)
    target = f"{getattr(made_by, '__module__', '')}.{name}"
    code = code_digest(target)
    return {"class": target} if code is None else {"class": target, "code": code}


def flattened(name: str, value: object) -> dict[str, object]:
    """Return nested values under dotted names."""
    if not is_mapping(value) or not value:
        return {name: value}
    found: dict[str, object] = {}
    for key, each in value.items():
        found |= flattened(f"{name}.{key}", each)
    return found


def _holds(value: object) -> dict[str, object]:
    """Return what an object was given; what it has computed since says nothing new."""
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return {}
    kind = type(value)
    return {
        name: each
        for name, each in vars(value).items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }
