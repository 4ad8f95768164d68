"""From logits to the law a token is drawn from; greedy decoding is the limit T -> 0 of it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specdec.core.errors import require, require_int, require_number
from specdec.core.ordering import ascending


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature, then top-k, then top-p, then min-p.

    The order is that of transformers' logits processors. `temperature=0` is greedy decoding: all
    mass on the arg max. `top_k=0`, `top_p=1` and `min_p=0` switch a filter off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        require_number("sampling.temperature", self.temperature, 0.0)
        require_int("sampling.top_k", self.top_k, 0)
        require_number("sampling.top_p", self.top_p, 0.0, 1.0)
        require(self.top_p > 0, "sampling.top_p", self.top_p, "a number in (0, 1]")
        require_number("sampling.min_p", self.min_p, 0.0, 1.0)

    def at(self, temperature: float | None) -> "Sampling":
        """Return the same with another temperature, or itself for None."""
        return self if temperature is None else replace(self, temperature=temperature)

    def warp(self, logits: Tensor) -> Tensor:  # [..., V] -> [..., V] float32
        """Return the probabilities of the next token; computed in fp32 whatever the model's type.

        Float64 logits stay float64, which the exact tests use.
        """
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.temperature == 0:
            winners = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits).scatter_(-1, winners, 1.0)
        if self.temperature != 1:
            # The largest logit becomes 0 first, so that no temperature is too small to divide by.
            logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(
                self.temperature, torch.finfo(logits.dtype).tiny
            )
        if 0 < self.top_k < logits.shape[-1]:
            logits = _keep_top_k(logits, self.top_k)
        probs = logits.softmax(dim=-1)
        if self.top_p < 1:
            probs = _keep_top_p(probs, self.top_p)
        if self.min_p > 0:
            probs = _keep_min_p(probs, self.min_p)
        return probs


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Drop what is below the k-th largest logit; ties with it stay (Fan et al. 2018)."""
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def _keep_top_p(probs: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches p (Holtzman et al. 2020).

    Of equally likely tokens those of smaller ids stay, so that the law depends on nothing else.
    """
    ordered = ascending(probs)
    num_dropped = (ordered.cumsum(dim=-1) <= 1 - p).sum(dim=-1, keepdim=True)
    num_dropped = num_dropped.clamp_(max=probs.shape[-1] - 1)
    least = ordered.gather(-1, num_dropped)
    kept, tied = probs > least, probs == least
    num_tied = probs.shape[-1] - num_dropped - kept.sum(dim=-1, keepdim=True)
    kept |= tied & (tied.cumsum(dim=-1) <= num_tied)
    probs = probs.masked_fill(~kept, 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def _keep_min_p(probs: Tensor, min_p: float) -> Tensor:
    """Drop what is less likely than min_p times the likeliest token (Nguyen et al. 2024)."""
    probs = probs.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def draw(probs: Tensor, uniforms: Tensor | float) -> Tensor:  # [..., V], [..., n] -> [..., n] int64
    """Draw n tokens from each law: invert its cumulative sum at `uniforms` in [0, 1), in float64.

    With 24-bit sums a token in the tail of a large vocabulary would never be drawn. The weights
    need not sum to one. A token of weight zero is never returned; V is, where a weight is NaN.
    One float is n = 1.
    """
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    # Below the total even after rounding: uniforms are at most 1 - 2^-53, half a unit in the last
    # place of 1, and where the total lies further above its power of two the gap is more than that.
    targets = cumulative[..., -1:] * uniforms
    return torch.searchsorted(cumulative, targets, right=True)
