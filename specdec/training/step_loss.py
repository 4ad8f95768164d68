"""Losses of steps of decoding: of all that the heads say at one position, not of single tokens."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from specdec.core.errors import Unfit
from specdec.training.objective import Loss


@runtime_checkable
class StepLoss(Loss, Protocol):
    """A loss of the K tokens that one step would draft; called, it scores each of them."""

    @property
    def needs_all(self) -> bool:
        """Whether a position's weight depends on the positions before it."""
        ...

    def weights(self, positions: Tensor, wanted: Tensor, scores: Callable[[], Tensor]) -> Tensor:
        """Weigh n positions of the flattened text, in order: [n], wanted [n, K] bool -> [n].

        `scores` computes what is not differentiated: the scores [n, K] of all of them.
        """
        ...

    def combine(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Combine the depths of n steps: scores and wanted [n, K] -> [n]."""
        ...


def require_token_loss(loss: Loss, drafting: str) -> None:
    """Refuse a loss of whole steps; `drafting` is what would be trained by it.

    Raises:
        Unfit: it is one.
    """
    if isinstance(loss, StepLoss):
        name = type(loss).__name__
        raise Unfit(f"loss={name}: is of heads; expected a loss of tokens with {drafting}")


class Decayed:
    """A loss of single tokens, summed over a step's depths: that of depth i (from 0) by decay^i."""

    needs_all = False

    def __init__(self, loss: Loss, decay: float):
        self._loss = loss
        self._decay = decay

    @property
    def uses_verifier(self) -> bool:
        """As the loss does."""
        return self._loss.uses_verifier

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score each token: [n, V], [n], [n, V] -> [n]."""
        return self._loss(logits, target_ids, log_p)

    def weights(self, positions: Tensor, wanted: Tensor, scores: Callable[[], Tensor]) -> Tensor:
        """Weigh all positions alike: [n], [n, K] -> [n]."""
        return torch.ones(len(positions), device=positions.device)

    def combine(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Add up what is wanted, later depths weighing less: [n, K] each -> [n]."""
        powers = [self._decay**depth for depth in range(scores.shape[1])]
        return (scores * wanted * torch.tensor(powers, device=scores.device)).sum(dim=1)

    def __str__(self) -> str:
        return f"{type(self._loss).__name__}, head i weighing {self._decay}^i"


def of_steps(loss: Loss, decay: float) -> StepLoss:
    """Return a loss of steps: the loss itself if it is one, which has no use for `decay`."""
    return loss if isinstance(loss, StepLoss) else Decayed(loss, decay)
