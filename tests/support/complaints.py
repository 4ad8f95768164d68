"""What every complaint about a user's mistake must be: one line that names it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from specdec.core.errors import UserError
from tests.support.running import Ended


def assert_one_line(ended: Ended, names: Sequence[str] = ()) -> None:
    """Check what an entry point left behind on the terminal."""
    assert_complaint(ended.status, ended.err, names)


def assert_complaint(status: int, err: str, names: Sequence[str] = ()) -> None:
    """Check the contract: one line on stderr that says what is wrong, and exit status 2."""
    lines = err.splitlines()
    assert "Traceback" not in err, f"a mistake of the user's ended in a traceback:\n{err}"
    assert len(lines) == 1, f"expected one line on stderr, got {len(lines)}:\n{err}"
    assert lines[0].startswith("error: "), f"the line must begin with `error: `:\n{err}"
    missing = [name for name in names if name not in lines[0]]
    assert not missing, f"the line does not say {missing}:\n{err}"
    assert status == 2, f"exit status {status}, expected 2"


def assert_damage_is_named(read: Callable[[str], object], file: Path, text: str) -> None:
    """Write a damaged file, and have it read; a lone surrogate stands for a byte not UTF-8."""
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        read(str(file))
    assert file.name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
