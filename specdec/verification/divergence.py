"""How far a rule that is not lossless strays from the verifier, exactly, where it strayed."""

import torch
from torch import Tensor


def divergences(emitted_probs: Tensor, p: Tensor) -> Tensor:  # [n, V], [n, V] -> [n, 2]
    """Return TV(emitted, p) and KL(emitted || p), in nats, of each row."""
    variation = 0.5 * (emitted_probs - p).abs().sum(dim=-1)
    # A distribution without mass where p has none has a KL of 0 there, not 0 * inf.
    terms = (emitted_probs * (emitted_probs / p).log()).where(emitted_probs > 0, 0.0)
    return torch.stack([variation, terms.sum(dim=-1)], dim=1)
