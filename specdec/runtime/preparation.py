"""Seconds that compilers and captures took: reported apart, and in nobody's step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_spent = 0.0
_depth = 0


@contextmanager
def preparing() -> Iterator[None]:
    """Book what happens within as preparation."""
    global _spent, _depth
    start = time.perf_counter()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _spent += time.perf_counter() - start


def prepared_seconds() -> float:
    """Return the seconds of preparation in this process so far."""
    return _spent


def now() -> float:
    """Return the seconds of a clock that stands still while programs are prepared."""
    return time.perf_counter() - _spent
