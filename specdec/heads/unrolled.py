"""Attention of rows that were unrolled: each place of a text, read again with its own outputs.

This is the mask of EAGLE-3's training-time test (Li et al. 2025, section 3.2, figure 6): at step s
the row of place i sees what step 0 made of places up to i, and what steps 1 ... s made of i itself.
So does decoding that begins at i: behind the text stand its own speculative cells alone.
"""

import torch
from torch import Tensor


class UnrolledAttention:
    """Remembers keys and values [B, heads, T, dim] of each step, and attends from the last one."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Add a step, and return what its queries find: [B, heads, T, dim].

        The causal part and the places' own are averaged by the logarithms of their sums, which is
        one softmax over both.
        """
        self._keys.append(keys)
        self._values.append(values)
        queries = queries * queries.shape[-1] ** -0.5
        scores = queries @ self._keys[0].transpose(-1, -2)  # [B, heads, T, T]
        length = queries.shape[-2]
        later = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
        own = [(queries * each).sum(dim=-1, keepdim=True) for each in self._keys[1:]]
        weights = torch.cat([scores, *own], dim=-1).softmax(dim=-1).to(values.dtype)
        found = weights[..., :length] @ self._values[0]
        for place, each in enumerate(self._values[1:], start=length):
            found = found + weights[..., place : place + 1] * each
        return found
