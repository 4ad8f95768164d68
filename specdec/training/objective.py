"""What a trainer trains: one protocol, so that heads and whole models share one loop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Samples of one length, padded at the end."""

    token_ids: Tensor  # [B, T] int64
    counted: Tensor  # [B, T] bool: the tokens whose prediction the loss counts
    places: tuple[int, ...] = ()  # [B]: where the samples stand in their file, if it has places
    step: int = 0  # of training, that the batch is for
    hidden: Tensor | None = None  # [B, T, W]: the verifier's states, where they are known

    @classmethod
    def of(cls, token_ids: Tensor) -> "Batch":
        """Count every token."""
        return cls(token_ids, torch.ones_like(token_ids, dtype=torch.bool))

    @property
    def num_counted(self) -> Tensor:  # scalar int64
        """The number of counted tokens; the first of a sample is never predicted."""
        return self.counted[:, 1:].sum()

    def rows(self) -> Iterator["Batch"]:
        """Yield one sample after the other."""
        for row in range(len(self.token_ids)):
            one = slice(row, row + 1)
            hidden = None if self.hidden is None else self.hidden[one]
            yield replace(
                self,
                token_ids=self.token_ids[one],
                counted=self.counted[one],
                places=self.places[one],
                hidden=hidden,
            )

    def to(self, device: torch.device) -> "Batch":
        """Move to a device."""
        hidden = None if self.hidden is None else self.hidden.to(device)
        token_ids, counted = self.token_ids.to(device), self.counted.to(device)
        return replace(self, token_ids=token_ids, counted=counted, hidden=hidden)


class Loss(Protocol):
    """A loss of one token's distribution."""

    @property
    def uses_verifier(self) -> bool:
        """Whether it wants the verifier's distribution."""
        ...

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score n tokens: logits [n, V] against target ids [n] or the verifier's log_p [n, V]."""
        ...


class Objective(Protocol):
    """A module, its data and its loss.

    A constructor takes options and refuses bad ones; all work is `prepare`'s, which comes first.
    `module` is the only thing that the trainer optimises and checkpoints; whatever else the loss
    needs (a frozen verifier, say) the objective keeps to itself.
    """

    module: nn.Module  # there once prepared

    def prepare(self) -> None:
        """Read the data and make the module: hours, where a verifier answers first.

        Called by the trainer at the start of every session; the second time there is nothing to do.
        """
        ...

    @property
    def num_samples(self) -> int:
        """How many samples one pass over the data has."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many tokens of one pass are read as targets."""
        ...

    def notes(self) -> Sequence[str]:
        """Say what of the data is left out and the like, a line each."""
        ...

    def preview(self) -> str:
        """Return the first sample as text, to be looked at before hours of training."""
        ...

    def batch(self, first: int, count: int) -> Batch:
        """Return the training samples numbered first ... first + count - 1."""
        ...

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the counted tokens' losses in nats (a scalar with a graph).

        The trainer divides by their number, over all micro-batches and processes of a step.
        """
        ...

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the groups that the optimizer gets; the first one's learning rate is logged."""
        ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure on held-out data; called in eval mode, without gradients."""
        ...

    def score(self, evaluation: dict[str, float]) -> float:
        """Return what an evaluation is worth: `save_best` keeps the largest."""
        ...

    def save(self, module: nn.Module, folder: Path, card: Mapping[str, str]) -> None:
        """Write what a user loads afterwards, with a card that has these lines about it."""
        ...


def decay_groups(
    module: nn.Module, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Decay matrices only: biases and norm gains have no direction to shrink along."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [{**group, "lr": learning_rate} for group in groups]
