"""Attention of many blocks along a text: each sees the text before it, and its own slots.

Blocks begin anywhere, may overlap, and may begin at the same place: none sees another. What of the
text a block sees is decided by where it begins, never by the positions of its slots.
"""

import torch
from torch import Tensor


def attended(
    queries: Tensor,  # [B, heads, A, S, dim], of S slots of A blocks
    context: tuple[Tensor, Tensor],  # keys and values [B, heads, T, dim] of the text
    own: tuple[Tensor, Tensor],  # those of the blocks, [B, heads, A, S, dim]
    last: Tensor,  # [B, A]: the last place of the text that each block sees
    is_causal: bool,  # whether a slot sees those before it alone, or all of its block
) -> Tensor:  # [B, heads, A, S, dim]
    """Return what the slots find: one softmax over the text and their own block."""
    (text_keys, text_values), (keys, values) = context, own
    queries = queries * queries.shape[-1] ** -0.5
    blocks, length = queries.shape[2:4], text_keys.shape[-2]
    num_slots = blocks[1]
    scores = (queries.flatten(2, 3) @ text_keys.transpose(-1, -2)).unflatten(2, blocks)
    unseen = torch.arange(length, device=last.device) > last[:, None, :, None, None]
    own_scores = queries @ keys.transpose(-1, -2)  # [B, heads, A, S, S]
    if is_causal:
        every = torch.ones(num_slots, num_slots, dtype=torch.bool, device=last.device)
        own_scores = own_scores.masked_fill(every.triu(1), float("-inf"))
    scores = torch.cat([scores.masked_fill(unseen, float("-inf")), own_scores], dim=-1)
    weights = scores.softmax(dim=-1).to(values.dtype)
    of_text, of_block = weights.split([length, num_slots], dim=-1)
    found = (of_text.flatten(2, 3) @ text_values).unflatten(2, blocks)
    return found + of_block @ values
