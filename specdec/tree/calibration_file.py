"""Read what `specdec-calibrate` wrote, with one line about whatever is wrong."""

from collections.abc import Callable
from pathlib import Path as File
from typing import Any, TypeVar

from specdec.core.errors import UserError, require_int, require_name
from specdec.core.text_file import read_text
from specdec.core.vouching import parse_note

T = TypeVar("T")


def read_calibration(path: str, extract: Callable[[Any], T]) -> T:
    """Return what `extract` takes from a calibration file.

    Raises:
        UserError: there is no such file, or `extract` does not find in it what it wants.
    """
    require_name("path", path, "a file of specdec-calibrate")
    if not File(path).is_file():
        raise UserError(f"path={path!r}: no such file; specdec-calibrate writes one")
    text = read_text(File(path))
    try:
        found = parse_note(text)
    except (TypeError, ValueError) as error:
        raise _refusal(path, error) from None
    try:
        return extract(found)
    except (KeyError, TypeError) as error:
        raise _refusal(path, error) from None


def require_budget(num_nodes: object, max_depth: object) -> None:
    """Refuse what is no size of a tree, or no depth of one; a depth of None is any."""
    require_int("num_nodes", num_nodes, 1)
    if max_depth is not None:
        require_int("max_depth", max_depth, 1)


def _refusal(path: str, error: Exception) -> UserError:
    return UserError(
        f"path={path!r}: not what specdec-calibrate writes"
        f" ({type(error).__name__}: {error}); calibrate anew"
    )
