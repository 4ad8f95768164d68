"""The operators that the kernels provide, as compilers see them."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from specdec.runtime.kernels.build import load_kernels

TYPES = (torch.float32, torch.bfloat16)


def have_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there are kernels for a type on a device; they are built at the first question."""
    return dtype in TYPES and device.type == "cpu" and _ready()


@lru_cache
def _ready() -> bool:
    """Load the operators, and tell compilers what they return; says so where that fails."""
    problem = load_kernels()
    if problem is not None:
        print(f"runtime=compiled goes without kernels of its own: {problem}")
        return False
    torch.library.register_fake("specdec::thin_linear", _like_linear)
    torch.library.register_fake("specdec::thin_attention", _like_attention)
    return True


def _like_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _like_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> Tensor:
    size, heads, num_new, _ = query.shape
    return query.new_empty(size, num_new, heads, value.shape[-1])


def linear_operator() -> Callable[..., Tensor]:
    """Return the operator x [M, K], W [N, K], b [N] or None -> x W^T + b [M, N].

    All are of one type; made for a few dozen rows, more of them are left to the library.
    """
    found: Callable[..., Tensor] = torch.ops.specdec.thin_linear.default
    return found


def thin_attention(
    query: Tensor,  # [B, heads, M, D]
    key: Tensor,  # [B, key heads, L, D]
    value: Tensor,  # [B, key heads, L, D']
    mask: Tensor,  # [B, 1 or heads, M, L], additive
    scale: float,
) -> Tensor:  # [B, M, heads, D']
    """Attend, reading keys and values where they lie; all are of one type, softmax in float32."""
    found: Tensor = torch.ops.specdec.thin_attention(query, key, value, mask, scale)
    return found
