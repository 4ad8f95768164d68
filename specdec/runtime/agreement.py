"""How far two ways to compute the same logits may differ, and how far they do."""

import torch
from torch import Tensor

# The largest relative difference (2-norm over the logits) that rounding explains. A wrong mask,
# position or cell gives differences of the order of 1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def relative_difference(ours: Tensor, plain: Tensor) -> float:
    """Relative 2-norm; infinite or missing numbers count as infinitely different.

    Whole numbers are equal or infinitely different.
    """
    if not plain.is_floating_point():
        return 0.0 if torch.equal(ours, plain) else float("inf")
    plain = plain.float()
    difference = float((ours.float() - plain).norm() / plain.norm().clamp_min(1e-30))
    return difference if difference == difference else float("inf")
