"""The batches of the next step are read while this one is trained on."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from specdec.training.objective import Batch


class ReadAhead:
    """Read the batches of steps, one step ahead of who asks, in one thread of its own.

    Which samples they are depends on the step alone, so that it makes no difference where a
    training goes on. Whatever reading raises is raised by the step that would have been read.

    Args:
        read: returns the batches of a step.
        end: the step that there are no batches of any more.
    """

    def __init__(self, read: Callable[[int], Sequence[Batch]], end: int):
        self._read, self._end = read, end
        # One, since what reads need not bear several at a time.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read_ahead")
        self._next: tuple[int, Future[Sequence[Batch]]] | None = None

    def of(self, step: int) -> Sequence[Batch]:
        """Return the batches of a step."""
        ahead, self._next = self._next, None
        if ahead is None or ahead[0] != step:
            ahead = self._begin(step)
        found = ahead[1].result()
        if step + 1 < self._end:
            self._next = self._begin(step + 1)
        return found

    def _begin(self, step: int) -> tuple[int, Future[Sequence[Batch]]]:
        return step, self._thread.submit(self._read, step)
