"""Plant bugs in the product, to see that the tests find them."""

import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]


def replaced(target: str, value: object) -> Plant:
    """Put something else in a place, e.g. `specdec.verification.rejection.residual`."""
    return lambda patch: patch.setattr(target, value)


def rewritten(target: str, old: str, new: str) -> Plant:
    """Change a few characters of a function; they must stand in it exactly once.

    Where they do not any more, the product was written anew, and so must be the bug.
    """

    def plant(patch: pytest.MonkeyPatch) -> None:
        function = resolved(target)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, f"{target} has {old!r} {source.count(old)} times, not once"
        module, names = sys.modules[function.__module__], dict[str, Any]()
        exec(source.replace(old, new), module.__dict__, names)
        patch.setattr(target, names[function.__name__])

    return plant


def resolved(target: str) -> Any:
    """Return what a dotted path of modules, classes and attributes names."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"{target} does not exist")
