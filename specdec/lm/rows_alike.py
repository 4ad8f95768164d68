"""Rows whose new cells stand at the same positions: what one forward of a decoder can read."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.on_device import on_device


class Alike(NamedTuple):
    """Rows that have as many cells of text, and whose new cells stand at the same positions."""

    start: int
    standing: Sequence[int]  # [M]
    rows: list[int]
    places: list[int]  # of the rows in their batch

    @property
    def num_new(self) -> int:
        """M, but for padding that would stand behind the context."""
        return len(self.standing)

    @property
    def follows(self) -> bool:
        """Whether each new cell stands behind the one before it."""
        return list(self.standing) == list(range(self.start, self.start + self.num_new))

    def standing_on(self, device: torch.device) -> int | Tensor:
        """Return what decoders add to 0, 1, 2, ... to get positions."""
        if self.follows:
            return self.start
        return on_device([each - place for place, each in enumerate(self.standing)], device)


def side_by_side(parts: Sequence[tuple[Alike, Tensor]], shape: torch.Size) -> Tensor:  # [B, M, ...]
    """Put what was read apart together; zeros where only padding stood behind the context."""
    first = parts[0][1]
    found = first.new_zeros(*shape, first.shape[2])
    for alike, part in parts:
        found[on_device(alike.places, found.device), : part.shape[1]] = part
    return found
