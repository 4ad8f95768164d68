"""What all trainings on a verifier's states share: their data, and what they are there for."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from specdec.training.data.verifier_states import VerifierStates
from specdec.training.objective import Batch, decay_groups


class OnStates:
    """The part of an `Objective` that follows from its data, and from what will be drafted."""

    states: VerifierStates
    module: nn.Module

    @property
    def num_samples(self) -> int:
        """How many samples a pass has."""
        return self.states.num_samples

    @property
    def num_tokens(self) -> int:
        """How many tokens of a pass are read as targets."""
        return self.states.num_tokens

    def notes(self) -> Sequence[str]:
        """Say what of the data is left out and the like."""
        return self.states.notes()

    def preview(self) -> str:
        """Show the first sample."""
        return self.states.preview()

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1."""
        return self.states.batch(first, count)

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Train all of the module alike."""
        return decay_groups(self.module, learning_rate, weight_decay)

    def score(self, evaluation: dict[str, float]) -> float:
        """Return what drafts are there for: to be accepted."""
        return evaluation["eval_block_efficiency"]
