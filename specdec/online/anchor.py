"""AdamW that remembers where the weights were first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class AnchoredAdamW(torch.optim.AdamW):
    """AdamW whose weights also decay to what they were first, in place of to 0.

    Each step moves them by `lr * anchor` of the way back: the gradient of half the squared distance
    times `anchor` (L2-SP, Li et al. 1802.01483, section 3), apart from Adam's moments as its weight
    decay is (Loshchilov and Hutter 1711.05101). A step of AdamW moves a weight by about `lr` at
    most, so that none comes much further than 1 / `anchor` from where it was.

    Args:
        groups: of parameters, each with its `lr`.
        anchor: at least 0, at most 1 / `lr`; with 0 this is AdamW, and nothing is remembered.
        betas: of AdamW.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], anchor: float, betas: tuple[float, float]):
        super().__init__(groups, betas=betas)
        self._anchor = anchor
        self._first = [
            [weight.detach().clone() for weight in group["params"]] if anchor else []
            for group in self.param_groups
        ]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take a step of AdamW, and one back."""
        super().step(closure)
        for group, first in zip(self.param_groups, self._first, strict=True):
            weights: Sequence[nn.Parameter] = group["params"]
            for weight, was in zip(weights, first, strict=bool(first)):
                weight.lerp_(was, group["lr"] * self._anchor)
