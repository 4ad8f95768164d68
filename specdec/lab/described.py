"""What an object is, in plain values: so that objects, as options do, identify a training.

Of code from elsewhere the compiled functions count, with what they close over and the functions
and numbers of their module that they name: a notebook has no file whose digest could be taken.
"""

import sys
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType
from typing import cast

import numpy as np
import torch
from torch import Tensor

from specdec.core.digest import digest_of
from specdec.core.errors import UserError
from specdec.core.narrowing import is_mapping, is_sequence
from specdec.core.plug_ins import OURS, code_digest
from specdec.lm.fingerprint import DIGESTS, fingerprint
from specdec.lm.hf import HFCausalLM

KNOWN = {OURS, "torch", "numpy", *sys.stdlib_module_names}  # whose code versions tell
MAIN = "__main__"
OF_CLASS = ("__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__slots__")
MEMBERS = (FunctionType, int, float, str, tuple, list, dict)  # that are described
Within = tuple[int, ...]  # ids of the objects that one is part of


def described(value: object, within: Within = ()) -> object:
    """Return plain values that are equal if and only if two objects would do the same.

    Of an object its class and all that it holds; of a model the digests of its configuration,
    tokenizer and weights; of a tensor that of its elements.

    Raises:
        UserError: it holds something of which one cannot be told from another.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "itself"
    within = (*within, id(value))
    if isinstance(value, HFCausalLM):
        known = fingerprint(value)
        return {name: known[name] for name in (*DIGESTS, "dtype")}
    if isinstance(value, Tensor | np.ndarray):
        return _array(torch.as_tensor(value))
    if is_mapping(value):
        return {str(name): described(each, within) for name, each in value.items()}
    if is_sequence(value):
        return [described(each, within) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, cast(Set[object], value)))
    if isinstance(value, type):
        return _class(value, within)
    if isinstance(value, FunctionType):
        return _function(value, within)
    return _object(value, within)


def flattened(name: str, value: object) -> dict[str, object]:
    """Return nested values under dotted names."""
    if not is_mapping(value) or not value:
        return {name: value}
    found: dict[str, object] = {}
    for key, each in value.items():
        found |= flattened(f"{name}.{key}", each)
    return found


def _array(values: Tensor) -> list[object]:
    content = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(values.dtype), list(values.shape), digest_of(content.numpy().tobytes())]


def _object(value: object, within: Within) -> object:
    holds = _holds(value)
    if holds is None or isinstance(value, Enum | Path):
        said = repr(value)
        if " at 0x" in said:
            raise UserError(f"{said}: cannot be told from another one; expected plain values")
        return said
    found = _class(type(value), within)
    return found | {name.strip("_"): described(each, within) for name, each in holds.items()}


def _holds(value: object) -> dict[str, object] | None:
    """Return what an object was given; what it has computed since says nothing new."""
    kind = type(value)
    slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    if not hasattr(value, "__dict__") and not slots:
        return None
    named = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    named |= getattr(value, "__dict__", {})
    computed = [name for name in named if isinstance(getattr(kind, name, None), cached_property)]
    return {name: each for name, each in named.items() if name not in computed}


def _class(kind: type, within: Within) -> dict[str, object]:
    found: dict[str, object] = {"class": _name(kind)}
    code = None if kind.__module__ == MAIN else code_digest(_name(kind))
    if code is not None:
        found["code"] = code
    for base in kind.__mro__:
        if _package(base) not in KNOWN:
            members = {name: _plain(each) for name, each in vars(base).items()}
            found[f"members of {base.__qualname__}"] = {
                name: described(cast(object, each), (*within, id(kind)))
                for name, each in members.items()
                if name not in OF_CLASS and isinstance(each, MEMBERS)
            }
    return found


def _plain(member: object) -> object:
    """Return the function of a method, however it is decorated."""
    member = getattr(member, "fget", member)  # of a property
    return getattr(member, "__func__", member)


def _function(value: FunctionType, within: Within) -> dict[str, object]:
    found: dict[str, object] = {"class": _name(value)}
    if _package(value) in KNOWN:
        return found
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    found |= {"code": digest_of(repr(_compiled(value.__code__)).encode())}
    found |= {
        "closure": described(cells, within),
        "defaults": described(value.__defaults__, within),
    }
    named = {name: value.__globals__[name] for name in _names(value.__code__, value.__globals__)}
    return found | {"names": described(named, within), **vars(value)}


def _names(code: CodeType, module: Mapping[str, object]) -> Iterator[str]:
    """Yield what of its module code names that may be another thing tomorrow."""
    for name in code.co_names:
        each = module.get(name)
        is_own = isinstance(each, FunctionType | type) and _package(each) not in KNOWN
        if is_own or isinstance(each, int | float | str):
            yield name


def _compiled(code: CodeType) -> list[object]:
    """Return what code does, wherever it stands."""
    return [code.co_code.hex(), list(map(_constant, code.co_consts)), code.co_names]


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _compiled(value)
    # A set has another order in each process.
    return sorted(map(repr, cast(Set[object], value))) if isinstance(value, frozenset) else value


def _package(made_by: type | FunctionType) -> str:
    name = made_by.__module__.split(".")[0]
    return "" if name == MAIN else name


def _name(made_by: type | FunctionType) -> str:
    return f"{made_by.__module__}.{made_by.__qualname__}"
