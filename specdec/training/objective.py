"""What a trainer trains: one protocol, so that heads and whole models share one loop."""

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """A module, its data and its loss.

    `module` is the only thing that the trainer prepares, optimises and checkpoints; whatever else
    the loss needs (a frozen verifier, say) the objective keeps to itself.
    """

    module: nn.Module

    def batch(self, first: int, count: int) -> Tensor:
        """Return the training samples numbered first ... first + count - 1."""
        ...

    def loss(self, module: nn.Module, batch: Tensor) -> Tensor:
        """Return the mean loss of a batch in nats per token (a scalar with a graph)."""
        ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure on held-out data; called in eval mode, without gradients."""
        ...

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write what a user loads afterwards."""
        ...
