"""What learns: a copy of the weights that a proposer drafts with, and their loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.core.errors import Unfit
from specdec.core.protocols import Proposer, Teachable
from specdec.core.values import FINAL, CandidateSource, Layer
from specdec.heads.base import DraftHeads
from specdec.lm.hf import HFCausalLM
from specdec.training.draft_losses import DraftLosses
from specdec.training.head_losses import HeadLosses
from specdec.training.objective import Loss
from specdec.training.step_loss import StepLoss

# Sums the losses of hidden [N, T, W], token ids [N, T] and counted [N, T].
LossOfTexts = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Student:
    """A float32 copy of the weights that proposals are made with.

    Steps of an optimiser are smaller than bfloat16 can tell apart, and a proposer whose weights are
    not to change yet must not see them. Weights, gradients and AdamW's moments take 16 bytes each.
    """

    trained: nn.Module
    drafting: nn.Module
    loss: LossOfTexts
    layers: Sequence[Layer] = (FINAL,)  # whose states it learns from, the last ones at the end

    @classmethod
    def of(cls, proposer: Proposer, verifier: HFCausalLM, loss: Loss, decay: float) -> Student:
        """Give a proposer weights of its own, and copy them; head i's loss weighs decay^i.

        Raises:
            UserError: it has no weights that could be trained here.
        """
        name = type(proposer).__name__
        if not isinstance(proposer, Teachable):
            raise Unfit(untaught(name))
        require_teachable(getattr(proposer, "source", None), name, loss)
        drafting = proposer.own_weights()
        copied = copy.deepcopy(drafting).float().requires_grad_(True).eval()
        if isinstance(copied, DraftHeads):
            losses = partial(HeadLosses(copied, loss, decay), verifier)
            return cls(copied, drafting, losses, copied.layers)
        if isinstance(copied, PreTrainedModel):
            return cls(copied, drafting, DraftLosses(copied, verifier, loss))
        raise Unfit(untaught(name))

    @torch.no_grad()
    def hand_over(self) -> None:
        """Let proposals be made with what was learned; weights stay where they are."""
        pairs = zip(self.drafting.parameters(), self.trained.parameters(), strict=True)
        for weight, learned in pairs:
            weight.copy_(learned)


def require_teachable(source: CandidateSource | None, called: str, loss: Loss) -> None:
    """Refuse a proposer without weights to train, and one that the loss is not for.

    Args:
        source: that its class declares.
        called: what a user knows it by.
        loss: by which it would learn.

    Raises:
        Unfit: so it is.
    """
    if source not in (CandidateSource.MODEL, CandidateSource.HEADS):
        raise Unfit(untaught(called))
    if isinstance(loss, StepLoss) and source is CandidateSource.MODEL:
        name = type(loss).__name__
        raise Unfit(f"loss={name}: is of heads; expected a loss of tokens with a draft model")


def untaught(called: str) -> str:
    """Say that a proposer cannot learn."""
    return f"online: {called} has no weights to train; expected a draft model, or heads"
