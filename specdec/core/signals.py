"""A scheduler's kill is like Ctrl-C: what was done is kept, and the same command goes on."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# What asks a process to end: Ctrl-C, a scheduler's kill, and its warning before (`--signal=USR1`).
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Terminated(KeyboardInterrupt):
    """The process was asked to end."""


@contextmanager
def terminable() -> Generator[None]:
    """Raise `Terminated` at SIGTERM, unless somebody else has taken that signal in hand."""
    if not _is_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class EndRequest:
    """Note that the process was asked to end, so that a step can be finished and saved before.

    Used as a context manager. Who asks a second time does not wait.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "EndRequest":
        for number in ENDING if _is_main_thread() else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None:
            raise self.ending()
        self.by = signal.Signals(number)

    def ending(self) -> KeyboardInterrupt:
        """Return what ends the process, as a shell sees it."""
        return KeyboardInterrupt() if self.by is signal.SIGINT else Terminated()
