"""What bounds a phase of decoding: bytes that must be moved, and operations, on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from specdec.lab.costs.copying import copied_bytes_per_second
from specdec.lab.costs.multiplying import multiplied_per_second

FIRST, FURTHER = "first token", "further token"


@dataclass(frozen=True)
class Machine:
    """What a device does in a second."""

    bytes_per_second: float  # of a large copy, read and written
    operations_per_second: float  # of a large product of matrices

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> "Machine":
        """Measure it."""
        return cls(copied_bytes_per_second(device), multiplied_per_second(device, dtype))

    @property
    def balance(self) -> float:
        """Operations for each byte at which both take equally long."""
        return self.operations_per_second / self.bytes_per_second


@dataclass(frozen=True)
class Phase:
    """A phase of decoding at one length of the text, and what it needs."""

    arm: str
    phase: str
    length: int
    seconds: float
    tokens_per_second: float  # of a first token those of its prefill
    num_bytes: int
    operations: int

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.operations / self.num_bytes

    def bound(self, machine: Machine) -> str:
        """Say what it would wait for on a machine that is used to the full."""
        return "arithmetic" if self.intensity > machine.balance else "memory"

    def floor(self, machine: Machine) -> float:
        """Return the seconds that it takes at least."""
        by_memory = self.num_bytes / machine.bytes_per_second
        return max(by_memory, self.operations / machine.operations_per_second)


def table_of(phases: Sequence[Phase], machine: Machine) -> Table:
    """Make a table, the cache and none beside each other."""
    columns = (
        "text",
        "phase",
        "",
        "ms",
        "tokens/s",
        "MB",
        "GFLOP",
        "FLOP/byte",
        "bound by",
        "floor",
    )
    table = Table(*columns)
    for each in phases:
        table.add_row(
            str(each.length),
            each.phase,
            each.arm,
            f"{1e3 * each.seconds:.2f}",
            f"{each.tokens_per_second:.0f}",
            f"{each.num_bytes / 1e6:.1f}",
            f"{each.operations / 1e9:.3f}",
            f"{each.intensity:.1f}",
            each.bound(machine),
            f"{each.seconds / each.floor(machine):.1f}x",
        )
    return table
