"""Compute the loss of a part of a batch's positions, which is right on average."""

import torch
from torch import Tensor


def random_run(count: int, share: float, device: torch.device) -> tuple[Tensor, float]:
    """Choose neighbouring positions out of `count` (indices [n], around the end if need be).

    Returns with them what their loss is to be multiplied by, so that its expectation is that of
    all positions.
    """
    chosen = max(1, round(share * count))
    if chosen >= count:
        return torch.arange(count, device=device), 1.0
    start = int(torch.randint(count, ()))
    return (start + torch.arange(chosen, device=device)) % count, count / chosen
