"""Compute the loss of a part of a batch's positions, which is right on average."""

from collections.abc import Callable

import torch
from torch import Tensor

# Chooses a share of positions: their indices, and what their loss is multiplied by.
Subset = Callable[[int, float, torch.device], tuple[Tensor, float]]


def random_run(count: int, share: float, device: torch.device) -> tuple[Tensor, float]:
    """Choose neighbouring positions out of `count` (indices [n], around the end if need be).

    Neighbours, because the verifier's distribution after t serves the heads of K positions.
    Returns with them what their loss is to be multiplied by, so that its expectation is that of
    all positions.
    """
    chosen = max(1, round(share * count))
    if chosen >= count:
        return torch.arange(count, device=device), 1.0
    start = int(torch.randint(count, ()))
    return (start + torch.arange(chosen, device=device)) % count, count / chosen


def random_places(count: int, share: float, device: torch.device) -> tuple[Tensor, float]:
    """Choose positions anywhere out of `count` (indices [n], in order), else as `random_run`."""
    chosen = max(1, round(share * count))
    if chosen >= count:
        return torch.arange(count, device=device), 1.0
    return torch.randperm(count)[:chosen].sort().values.to(device), count / chosen
