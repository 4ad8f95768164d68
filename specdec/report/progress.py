"""How far something is: a bar on a terminal, and elsewhere a line now and then."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from specdec.core.duration import in_words

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Count what is done of `total`, from `initial` on; used as a context manager.

    A total of None is not known before the end. Lines go to stdout, where the log of a job without
    a terminal is.
    """

    def __init__(self, total: int | None, desc: str, unit: str, initial: int = 0):
        self._total, self._desc, self._unit = total, desc, unit
        self._done = self._first = initial
        self._is_terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._since = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._is_terminal:
            self._bar = tqdm(
                total=self._total, initial=self._first, desc=self._desc, unit=self._unit
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """Note that so many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(self._line(), flush=True)

    @property
    def left(self) -> int:
        """How many are not done, of a known total."""
        assert self._total is not None
        return self._total - self._done

    def on(self, what: str) -> None:
        """Say what is being worked on, where there is a bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(what)

    def _line(self) -> str:
        if self._total is None:
            return f"{self._desc}: {self._done} {self._unit}s"
        each = (time.monotonic() - self._since) / max(1, self._done - self._first)
        left = in_words(each * self.left)
        return f"{self._desc}: {self._done} of {self._total} {self._unit}s, {left} left"
