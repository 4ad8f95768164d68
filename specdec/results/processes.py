"""The processes that share one job, started by `accelerate launch` or `torchrun`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from specdec.core.errors import UserError

T = TypeVar("T")

# How long one process may wait for another's prompts.
PATIENCE = timedelta(days=7)


class Processes:
    """Deal prompts out and bring results together; with one process there is nothing to do.

    Noise is keyed by prompt, so the texts are the same however many processes there are.

    Args:
        device: where models run.
        alike: all do the same on parts of one model, and only the main one writes.
    """

    def __init__(self, device: str, alike: bool = False):
        self.number = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.alike = alike and self.number > 1
        if self.number > 1:
            from accelerate import PartialState

            PartialState(cpu=device == "cpu", timeout=PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Whether what this one makes is its own."""
        return self.is_main or not self.alike

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's part."""
        return list(items if self.alike else items[self.rank :: self.number])

    def same(self, value: T) -> T:
        """Return the main process's value where all do the same, and this one's own elsewhere."""
        return self.agreed(value) if self.alike else value

    def agreed(self, value: T) -> T:
        """Return the main process's value, everywhere."""
        if self.number == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait at the end until all are there; what fails in one process fails in all of them."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.number == 1:
                raise
            error = caught
        if self.number == 1:
            return
        from accelerate.utils import gather_object

        said = [] if error is None else [f"process {self.rank}: {type(error).__name__}: {error}"]
        others = gather_object(said)
        if error is not None:
            raise error
        if others:
            raise UserError("; ".join(others))


def forget_precision() -> None:
    """Let the next job of this process ask for another precision than the one before it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # accelerate has no public word for it
