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
    a terminal is; without `has_lines` the caller says them, and without `has_bar` nobody looks.
    """

    def __init__(
        self,
        total: int | None,
        desc: str,
        unit: str,
        initial: int = 0,
        has_lines: bool = True,
        has_bar: bool = True,
    ):
        self._total, self._desc, self._unit, self._has_lines = total, desc, unit, has_lines
        self._done = self._first = initial
        self._is_shown = has_bar and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._since = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._is_shown:
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
        elif self._has_lines and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(self._line(), flush=True)

    @property
    def left(self) -> int:
        """How many are not done, of a known total."""
        assert self._total is not None
        return self._total - self._done

    @property
    def time_left(self) -> str:
        """How long the rest takes at the pace so far, in words; of a known total."""
        each = (time.monotonic() - self._since) / max(1, self._done - self._first)
        return in_words(each * self.left)

    @property
    def shows_bar(self) -> bool:
        """Whether there is a terminal that shows a bar."""
        return self._bar is not None

    def on(self, what: str) -> None:
        """Say what is being worked on, where there is a bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(what)

    def _line(self) -> str:
        if self._total is None:
            return f"{self._desc}: {self._done} {self._unit}s"
        return f"{self._desc}: {self._done} of {self._total} {self._unit}s, {self.time_left} left"
