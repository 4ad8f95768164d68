"""Attention for programs of fixed shape: keys and values are read where they lie, never copied.

With grouped-query attention (Ainslie et al. 2023) transformers' own function copies each key head
once for every query head of its group, as soon as there is a mask and more than one query. Here
the query heads of a group and the new cells are one dimension of a matrix product instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specdec.runtime.kernels.operators import thin_attention

FOLDED = "specdec_folded"
THIN = "specdec_thin"  # the same by a kernel of ours
STOCK = "sdpa"  # what it takes the place of; families without sdpa need more than it computes


def folded(
    module: nn.Module,
    query: Tensor,  # [B, heads, M, D]
    key: Tensor,  # [B, key heads, L, D]
    value: Tensor,  # [B, key heads, L, D']
    attention_mask: Tensor,  # [B, 1 or heads, M, L], additive
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:  # [B, M, heads, D']
    """Attend, as functions of `ALL_ATTENTION_FUNCTIONS` do; softmax in float32."""
    size, heads, num_new, dim = query.shape
    key_heads, length = key.shape[1:3]
    group = heads // key_heads
    scale = dim**-0.5 if scaling is None else scaling
    packed = query.reshape(size, key_heads, group * num_new, dim)
    scores = torch.matmul(packed, key.transpose(2, 3)) * scale
    by_head = scores.view(size, key_heads, group, num_new, length)
    mask_heads = attention_mask.shape[1]
    if mask_heads == 1:
        by_head = by_head + attention_mask[:, :, None]
    else:
        by_head = by_head + attention_mask.view(size, key_heads, group, num_new, length)
    weights = by_head.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    mixed = torch.matmul(weights.view(size, key_heads, group * num_new, length), value)
    found = mixed.view(size, heads, num_new, value.shape[-1])
    return found.transpose(1, 2).contiguous(), None


def thin(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attend as `folded` does, by a kernel where all are of one type."""
    types = {each.dtype for each in (query, key, value, attention_mask)}
    if len(types) > 1:
        return folded(module, query, key, value, attention_mask, dropout, scaling)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    mask = attention_mask.expand(query.shape[0], -1, -1, -1)
    return thin_attention(query, key, value, mask, scale), None


@contextmanager
def folding(model: PreTrainedModel, name: str = FOLDED) -> Iterator[None]:
    """Let a model that runs sdpa attend by `folded` or `thin` meanwhile; others go on as ever."""
    if model.config._attn_implementation != STOCK:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(STOCK)


def _register() -> None:
    """Make them known to transformers; their masks are additive, whoever builds them."""
    functions: Any = ALL_ATTENTION_FUNCTIONS
    masks: Any = ALL_MASK_ATTENTION_FUNCTIONS
    for name, function in ((FOLDED, folded), (THIN, thin)):
        functions.register(name, function)
        masks.register(name, eager_mask)


_register()
