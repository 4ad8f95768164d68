"""One lesson at a time, in a thread beside the one that decodes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch


class Lessons:
    """Runs lessons in a thread of its own, on a GPU in a stream of its own.

    A lesson may use what nobody changes before `wait` has returned. The device has done all of it
    by then. Decoding runs in inference mode, whose tensors no gradient goes through; such modes are
    a thread's own, and here is none.

    Args:
        device: that lessons are computed on.
    """

    def __init__(self, device: torch.device):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lesson")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._running: Future[None] | None = None

    def begin(self, lesson: Callable[[], None]) -> None:
        """Begin a lesson; the one before has been waited for."""
        assert self._running is None, "two lessons at a time"
        if self._stream is not None:  # what the lesson reads may still be on its way
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._running = self._thread.submit(self._run, lesson)

    def _run(self, lesson: Callable[[], None]) -> None:
        with torch.inference_mode(False), torch.enable_grad(), torch.cuda.stream(self._stream):
            lesson()
        if self._stream is not None:
            self._stream.synchronize()

    def wait(self) -> bool:
        """Wait for the lesson that runs, and return whether there is one.

        Raises:
            Exception: what the lesson raised; it is over then.
        """
        if self._running is None:
            return False
        wait([self._running])  # interrupted here, it still runs
        over, self._running = self._running, None
        over.result()
        return True
