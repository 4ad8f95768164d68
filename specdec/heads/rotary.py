"""Rotary positions (Su et al. 2021) of layers of our own, with exact angles in every type."""

import torch
from torch import Tensor

BASE = 10000.0


def rotated(states: Tensor, positions: Tensor) -> Tensor:
    """Rotate queries or keys [B, heads, M, dim] by the angles of their positions [B, M].

    Only differences of positions matter to the products of two of them. Numbers j and j + dim/2
    are turned together. Angles are float32 at least: half precision knows no large ones.
    """
    half = states.shape[-1] // 2
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    steps = torch.arange(half, device=states.device, dtype=dtype)
    angles = positions[:, None, :, None].to(dtype) * BASE ** (-steps / half)  # [B, 1, M, dim / 2]
    cosines, sines = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    first, second = states[..., :half], states[..., half:]
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat(turned, dim=-1)
