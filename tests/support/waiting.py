"""How often the host would wait if tensors lay on a device, counted on the processor."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

WAITING = ["tolist", "item", "__int__", "__float__", "__bool__", "__index__", "cpu", "nonzero"]


@contextmanager
def on_device(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Let the product believe that reading numbers waits, and count how often it does.

    Not seen: indices and numbers that go to the device, which the host does not wait for longer
    than the copy takes.
    """
    with patch.context() as inner, waits_counted(inner) as counts:
        for module in ("on_host", "shown"):
            inner.setattr(f"specdec.core.{module}.reading_waits", lambda device: True)
        yield counts


@contextmanager
def waits_counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count what would make the host wait if the tables were on a device."""
    counts: Counter[str] = Counter()
    depth = 0

    def counting(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal depth
            counts[name] += depth == 0  # `int(x)` may call `item`: it waits once
            depth += 1
            try:
                return method(*args, **kwargs)
            finally:
                depth -= 1

        return call

    with patch.context() as inner:
        for name in WAITING:
            inner.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
        yield counts
