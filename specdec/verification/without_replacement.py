"""Draws without replacement, where each one's distribution depends on those before it."""

import torch
from torch import Tensor

from specdec.core.sampling import draw

NUM_SEQUENCES = 8  # of rejected candidates that are drawn where no closed form is known


def beside_each(q: Tensor) -> Tensor:  # [n, V] -> [n, V]
    """Return what q gives to all tokens but each one.

    Not 1 - q: where the draft is nearly sure of a token, float32 has nothing left of that.
    """
    likeliest = q.argmax(dim=1, keepdim=True)
    beside = q.scatter(1, likeliest, 0.0).sum(dim=1, keepdim=True)
    others = beside + q.gather(1, likeliest) - q
    return others.scatter(1, likeliest, beside).clamp(min=torch.finfo(q.dtype).tiny)


def any_of(weights: Tensor, generator: torch.Generator | None) -> Tensor:  # [n, V] -> [n, 1]
    """Draw a token from each row; any will do where there is no weight."""
    uniforms = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64)
    return draw(weights, uniforms.to(weights.device)).clamp_(max=weights.shape[1] - 1)
