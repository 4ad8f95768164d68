"""Weights of fewer bits, by torchao: less memory to read a step, for what is bound by that.

Only weights are rounded (int8, one scale for each output); what is computed stays in the model's
type. It pays in compiled programs of few tokens: for draft models, and less for verifiers.
"""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.errors import UserError, require

INT8 = "int8"
PACKAGE = "torchao"


def require_quantization(name: object, field: str) -> None:
    """Refuse what is no way to round weights, or none that can be had here; None is none.

    Raises:
        UserError: it is not; `field` begins the message.
    """
    require(name is None or name == INT8, field, name, f"{INT8}, or null")
    if name is not None and find_spec(PACKAGE) is None:
        raise UserError(
            f"{field}={name!r}: needs the package {PACKAGE}; pip install 'specdec-lab[int8]'"
        )


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
    """Return a weight as the numbers that it stands for; plain ones are themselves."""
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
