"""What all trainings on a verifier's states share: they are fed by these alone."""

from collections.abc import Sequence

from specdec.training.data.verifier_states import VerifierStates
from specdec.training.objective import Batch


class OnStates:
    """The part of an `Objective` that is about its data."""

    states: VerifierStates

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
