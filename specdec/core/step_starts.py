"""Where the steps of decoding begin on a given text: a Markov chain on its positions."""

import torch
from torch import Tensor


def starts_along(survival: Tensor, lengths: Tensor) -> Tensor:  # [B, T, D + 1], [B] -> [B, T]
    """Return r(s), the probability that a step begins at s, given the text: r(0) = 1.

    `survival` is P(A >= k | text, s) along B texts of `lengths` tokens. From s the next step begins
    at s + A + 1, so r follows position by position.
    """
    num_rows, length, width = survival.shape
    inside = torch.arange(length, device=survival.device) < lengths[:, None]
    exactly = survival.clone()
    exactly[..., :-1] -= survival[..., 1:]  # P(A = a)
    exactly *= inside[..., None]
    starts = survival.new_zeros(num_rows, length + width)
    starts[:, 0] = 1.0
    for place in range(length):
        starts[:, place + 1 : place + 1 + width] += starts[:, place, None] * exactly[:, place]
    # What lies behind a text's end was reached from within it.
    return starts[:, :length] * inside
