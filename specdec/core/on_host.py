"""Tensors as lists of numbers, each in one transfer; torch does not say what `tolist` returns."""

from typing import Protocol, cast

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


def _listed(values: _Listed) -> object:
    return values.tolist()
