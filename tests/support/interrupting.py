"""Commands that are interrupted while they decode."""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from specdec.core.trace import Trace


def stop_after(
    monkeypatch: pytest.MonkeyPatch, num_texts: int, error: BaseException | None = None
) -> None:
    """Raise while the text after the first `num_texts` is decoded, warm-ups not counted.

    None: as when a user presses Ctrl-C.
    """
    arm = import_module("specdec.lab.arm").Arm
    decode, done = arm.decode, list["Trace"]()

    def stopping(self: Any, prompts: Any, looked_at: Any = ()) -> Iterator["Trace"]:
        for trace in decode(self, prompts, looked_at):
            if len(done) == num_texts:
                raise KeyboardInterrupt if error is None else error
            done.append(trace)
            yield trace

    monkeypatch.setattr(arm, "decode", stopping)
