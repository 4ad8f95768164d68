"""Sum a loss over chunks of tokens, so that the logits of one chunk exist at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 23  # of a vocabulary projection: 32 MiB in fp32, whatever the batch

# Scores some tokens, given by a slice and by the slices of all states, as one sum.
Score = Callable[[slice, Sequence[Tensor]], Tensor]


def chunked_sum(
    score: Score, states: Sequence[Tensor], parameters: Sequence[Tensor], size: int
) -> Tensor:
    """Sum `score` over chunks of `size` tokens of the states, each [n, H], to a scalar.

    Gradients reach the states and `parameters` (whatever else `score` reads that is trained).
    Each chunk is differentiated as soon as it is scored: neither are its logits kept for the
    backward pass, nor computed a second time.
    """
    if torch.is_grad_enabled():
        total = _ChunkedSum.apply(score, size, len(states), *states, *parameters)
        assert isinstance(total, Tensor)
        return total
    return torch.stack(list(chunk_by_chunk(score, states, size))).sum()


def chunk_by_chunk(score: Score, states: Sequence[Tensor], size: int) -> Iterator[Tensor]:
    """Yield what `score` (which need not be a sum) finds in each chunk, one chunk after another."""
    for piece in _pieces(states, size):
        yield score(piece, [state[piece] for state in states])


def _pieces(states: Sequence[Tensor], size: int) -> list[slice]:
    """Cut into chunks; no tokens at all are one chunk of none."""
    return [slice(start, start + size) for start in range(0, max(1, len(states[0])), size)]


class _ChunkedSum(torch.autograd.Function):
    """Computes the gradients in the forward pass and hands them on in the backward pass."""

    @staticmethod
    def forward(ctx: Any, score: Score, size: int, num_states: int, *tensors: Tensor) -> Tensor:
        states, parameters = tensors[:num_states], tensors[num_states:]
        gradients = [torch.zeros_like(tensor) for tensor in tensors]
        total = states[0].new_zeros((), dtype=torch.float32)
        for piece in _pieces(states, size):
            with torch.enable_grad():
                inputs = [state[piece].detach().requires_grad_() for state in states]
                part = score(piece, inputs)
            found = torch.autograd.grad(part, [*inputs, *parameters])
            for whole, gradient in zip(gradients[:num_states], found, strict=False):
                whole[piece] = gradient
            for whole, gradient in zip(gradients[num_states:], found[num_states:], strict=True):
                whole += gradient
            total += part.detach()
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # freed as they are used
        return (None, None, None, *(gradient.mul_(outputs[0]) for gradient in gradients))
