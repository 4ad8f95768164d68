"""Modules that a test writes, and what a new process would not remember of them."""

import importlib
import sys
from pathlib import Path
from types import ModuleType


def forget_modules(folder: Path, names: set[str] | None = None) -> None:
    """Drop the modules that lie in `folder`: all of them, or those of `names`."""
    within = folder.resolve()
    for name in list(sys.modules) if names is None else names:
        module = sys.modules.get(name)
        if any(Path(path).resolve().is_relative_to(within) for path in places(module)):
            del sys.modules[name]
    importlib.invalidate_caches()  # a file that was just written is found


def places(module: ModuleType | None) -> list[str]:
    """Return where a module lies; a folder without an `__init__.py` has no file."""
    file = getattr(module, "__file__", None)
    return [file] if file else list(getattr(module, "__path__", ()))
