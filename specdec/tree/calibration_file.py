"""Read what `specdec-calibrate` wrote, with one line about whatever is wrong."""

from collections.abc import Callable
from pathlib import Path as File
from typing import Any, TypeVar

from specdec.core.errors import UserError, require
from specdec.core.jsonl import read_text
from specdec.core.vouching import parse_note

T = TypeVar("T")


def read_calibration(path: str, extract: Callable[[Any], T]) -> T:
    """Return what `extract` takes from a calibration file.

    Raises:
        UserError: there is no such file, or `extract` does not find in it what it wants.
    """
    require(isinstance(path, str) and bool(path), "tree.path", path, "a file of specdec-calibrate")
    if not File(path).is_file():
        raise UserError(f"tree.path={path!r}: no such file; specdec-calibrate writes one")
    text = read_text(File(path))
    try:
        found = parse_note(text)
    except (TypeError, ValueError) as error:
        raise _refusal(path, error) from None
    try:
        return extract(found)
    except (KeyError, TypeError) as error:
        raise _refusal(path, error) from None


def _refusal(path: str, error: Exception) -> UserError:
    return UserError(
        f"tree.path={path!r}: not what specdec-calibrate writes"
        f" ({type(error).__name__}: {error}); calibrate anew"
    )
