"""Kullback-Leibler divergence from the verifier's distribution."""

from typing import Any

import torch
from torch import Tensor


class KL:
    """KL(p || q) with the verifier's p at temperature 1 (DistillSpec, Zhou et al. 2023).

    Its gradient is that of the cross-entropy with p as a soft label: the same on average as that of
    the text's tokens, if the verifier wrote them, with less noise.
    """

    uses_verifier = True

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score each token: [n, V], [n], [n, V] -> [n] nats."""
        assert log_p is not None
        found = _Divergence.apply(logits, log_p)
        assert isinstance(found, Tensor)
        return found


class _Divergence(torch.autograd.Function):
    """The gradient is q - p: known as soon as the value is, with few passes over [n, V]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_p: Tensor) -> Tensor:
        log_q, p = logits.log_softmax(dim=-1), log_p.exp()
        found = (log_p - log_q).mul_(p).sum(dim=-1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_q.exp_().sub_(p))
        return found

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * outputs[0][:, None], None
