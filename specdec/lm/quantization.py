"""Weights of fewer bits: less memory to read a step, for what is bound by that.

`int8` rounds what was loaded (one scale for each output; what is computed stays in the model's
type) and pays in compiled programs of few tokens: for draft models, and less for verifiers. The
others are done by transformers while it loads. Checkpoints may also come with such weights.
"""

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from specdec.core.errors import UserError, require
from specdec.runtime.choice import AUTO, EAGER

INT8, INT4, BNB_8BIT, BNB_4BIT = "int8", "int4", "bnb_8bit", "bnb_4bit"
PACKAGE, BITSANDBYTES = "torchao", "bitsandbytes"
NAMES = {INT8: PACKAGE, INT4: PACKAGE, BNB_8BIT: BITSANDBYTES, BNB_4BIT: BITSANDBYTES}
INSTALLED_BY = {PACKAGE: "'specdec-lab[int8]'"}  # what pip is told, where it is not the name
GROUP = 32  # weights that share a scale of int4
# The packages that transformers needs for checkpoints of each method; it has the others itself.
OF_CHECKPOINTS = {
    "aqlm": "aqlm",
    "auto-round": "auto_round",
    "awq": "gptqmodel",
    "bitsandbytes": BITSANDBYTES,
    "compressed-tensors": "compressed_tensors",
    "eetq": "kernels",
    "fbgemm_fp8": "fbgemm_gpu",
    "fp_quant": "fp_quant",
    "gptq": "gptqmodel",
    "higgs": "flute",
    "hqq": "hqq",
    "quark": "quark",
    "spqr": "spqr_quant",
    "torchao": PACKAGE,
    "vptq": "vptq",
}


def require_quantization(name: object, field: str) -> None:
    """Refuse what is no way to round weights, or none that can be had here; None is none.

    Raises:
        UserError: it is not; `field` begins the message.
    """
    expected = f"{', '.join(NAMES)}, or null"
    require(name is None or (isinstance(name, str) and name in NAMES), field, name, expected)
    if isinstance(name, str):
        _require_package(NAMES[name], f"{field}={name!r}: needs")


def require_loadable_weights(config: PreTrainedConfig, called: str) -> None:
    """Refuse a checkpoint of rounded weights that this machine has no package for.

    Raises:
        UserError: there is none; `called` begins the message.
    """
    method = method_of(config)
    if method in OF_CHECKPOINTS:
        what = f"{called}: its weights are quantised by {method}, which needs"
        _require_package(OF_CHECKPOINTS[method], what)


def _require_package(package: str, needed: str) -> None:
    if find_spec(package) is None:
        named = INSTALLED_BY.get(package, package)
        raise UserError(f"{needed} the package {package}; pip install {named}")


def require_once(
    config: PreTrainedConfig, name: str | None, runtime: str, adapter: str | None, field: str
) -> None:
    """Refuse weights that are to be rounded twice, and what goes with plain weights alone.

    Raises:
        UserError: the message begins with `field`, the option.
    """
    method = method_of(config)
    if name is not None and method is not None:
        raise UserError(
            f"{field}={name!r}: the weights of this checkpoint are quantised by {method} already;"
            " expected null"
        )
    if method is None and name in (None, INT8):
        return
    what = f"{field}={name!r}" if method is None else f"weights that are quantised by {method}"
    if runtime not in (EAGER, AUTO):
        raise UserError(f"{what}: run by runtime={EAGER} alone, not by {runtime!r}")
    if adapter is not None:
        raise UserError(f"{what}: an adapter is merged into plain weights, or into {INT8}")


def method_of(config: PreTrainedConfig) -> str | None:
    """Return how the weights of a checkpoint were quantised, as transformers calls it."""
    found: Any = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(), "quantization_config", None)
    if found is None:
        return None
    said: Any = found if isinstance(found, Mapping) else found.to_dict()
    method = said.get("quant_method")
    if method is None:  # as old files of bitsandbytes have it
        loads = said.get("load_in_8bit") or said.get("load_in_4bit")
        return "bitsandbytes" if loads else "unknown"
    return str(getattr(method, "value", method))


def while_loading(
    name: str | None, dtype: torch.dtype
) -> BitsAndBytesConfig | TorchAoConfig | None:
    """Return the configuration by which transformers rounds weights; None: it does not."""
    if name == BNB_8BIT:
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == BNB_4BIT:
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    if name == INT4:
        torchao: Any = import_module(f"{PACKAGE}.quantization")
        groups, kinds = torchao.PerGroup(GROUP), cast(Any, torch)  # which says nothing of int4
        return TorchAoConfig(torchao.IntxWeightOnlyConfig(kinds.int4, granularity=groups))
    return None


def quantized(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with the weights of its linear layers in int8; the one given is used up."""
    noisy = logging.getLogger(PACKAGE)  # of kernels for other machines
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        torchao: Any = import_module(f"{PACKAGE}.quantization")  # which few have installed
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    finally:
        noisy.setLevel(level)
    return model


def as_numbers(weight: Tensor) -> Tensor:
    """Return a weight as the numbers that it stands for; plain ones are themselves.

    Of one that processes share, all of it: each of them must ask.
    """
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    return weight.dequantize() if _is_rounded(weight) else weight


def num_bytes(weight: Tensor) -> int:
    """Return the bytes that a weight takes."""
    if not _is_rounded(weight):
        return weight.numel() * weight.element_size()
    packed: Any = weight
    parts = [getattr(packed, name) for name in packed.__tensor_flatten__()[0]]
    return sum(part.numel() * part.element_size() for part in parts)


def _is_rounded(weight: Tensor) -> bool:
    return type(weight).__module__.split(".")[0] == PACKAGE
