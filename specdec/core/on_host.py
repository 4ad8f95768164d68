"""Tensors as lists of numbers, each in one transfer; torch does not say what `tolist` returns."""

from itertools import accumulate
from typing import Protocol, cast

import torch
from torch import Tensor


class _Listed(Protocol):
    def tolist(self) -> object: ...


def floats(values: Tensor) -> list[float]:  # [n]
    """Return numbers."""
    return cast(list[float], _listed(values))


def integers(values: Tensor) -> list[int]:  # [n]
    """Return whole numbers."""
    return cast(list[int], _listed(values))


def rows(values: Tensor) -> list[list[float]]:  # [n, m]
    """Return rows of numbers."""
    return cast(list[list[float]], _listed(values))


def together(*values: Tensor) -> list[list[list[float]]]:  # each [n, m]
    """Return rows of numbers of several tensors, for which the device is waited for once."""
    if len(values) == 1 or not reading_waits(values[0].device):
        return [rows(each) for each in values]
    # Float64 holds the numbers of tokens exactly, too.
    packed = floats(torch.cat([each.flatten().double() for each in values]))
    starts = accumulate((each.numel() for each in values), initial=0)
    return [_cut(packed, start, *each.shape) for each, start in zip(values, starts, strict=False)]


def _cut(packed: list[float], start: int, height: int, width: int) -> list[list[float]]:
    """Take the rows of one tensor out of the numbers of several."""
    rows_start = range(start, start + height * width, width) if width else [start] * height
    return [packed[each : each + width] for each in rows_start]


def reading_waits(device: torch.device) -> bool:
    """Whether to read a number of a tensor is to wait until the device has done all its work."""
    return device.type != "cpu"


def _listed(values: _Listed) -> object:
    return values.tolist()
