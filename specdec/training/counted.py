"""What a session counts step by step, and a checkpoint holds: losses since a log, and tokens."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from specdec.training.objective import Batch


class Losses:
    """Each step's loss since the last log; saved with a checkpoint, so that logs agree too."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Note one step, without waiting for the device."""
        self.values.append(loss)

    def mean(self) -> Tensor:
        """Average what was noted."""
        # Those of a checkpoint come back on the CPU.
        device = self.values[-1].device
        return torch.stack([value.to(device) for value in self.values]).mean()

    def clear(self) -> None:
        """Begin anew after logging."""
        self.values = []

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return what a checkpoint holds."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take up what a checkpoint held."""
        self.values = list(state["values"])


class TrainedOn:
    """The tokens that were read as targets so far (see `training_tokens`)."""

    def __init__(self) -> None:
        self._count: Tensor | int = 0

    def add(self, count: Tensor) -> None:
        """Note one step, without waiting for the device."""
        self._count = self._count + count

    @property
    def tokens(self) -> int:
        """How many there were."""
        return int(self._count)

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint holds."""
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up what a checkpoint held."""
        self._count = state["tokens"]


def agreed(accelerator: Accelerator, batches: Sequence[Batch], ends: bool) -> tuple[Tensor, bool]:
    """Count the tokens of a step, and ask for its end, over all processes and micro-batches."""
    count = torch.stack([batch.num_counted for batch in batches]).sum()
    if accelerator.num_processes == 1:  # nobody waits for the device
        return count.clamp(min=1), ends
    both = torch.stack([count, torch.full_like(count, int(ends))])
    total = accelerator.reduce(both, "sum")
    assert isinstance(total, Tensor)
    return total[0].clamp(min=1), bool(total[1])
