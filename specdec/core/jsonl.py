"""JSON Lines: read with the line number in every complaint, written whole or not at all.

Whatever is written goes through `writing`, so that a full disk is one line to every caller.
"""

import json
import os
import platform
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Any, cast

from specdec.core.errors import RowError, Unwritable
from specdec.core.narrowing import is_mapping
from specdec.core.text_file import opened, require_characters, require_text

SEAL = "crc32"  # of a row without it; see `sealed`
UNREADABLE = (ValueError, RecursionError)  # of JSON: broken, a number too long, nested too deep
BLANK = "\ufeff \t\r\n"  # around a row; the mark of such a file, where it was joined to others


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based line number, row) for each line that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object of whole characters.
    """
    for number, row in scan_jsonl(path):
        if isinstance(row, RowError):
            raise row
        yield number, row


def scan_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield (1-based line number, row), or in place of a row why the line holds none.

    Raises:
        UserError: the file cannot be read.
    """
    with opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            line = line.strip(BLANK)
            if line:
                try:
                    yield number, _parse(f"{path}:{number}", line)
                except RowError as error:
                    yield number, error


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that is appended to, without lines that are not as written.

    A crash tears a line, and a disk garbles some; rows that were `sealed` show it. A missing file
    has no rows.
    """
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = unsealed(json.loads(line))
        except (TypeError, ValueError):
            continue
        yield row


def sealed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with a checksum of its own, by which `unsealed` knows it again."""
    return {**row, SEAL: _checksum(row)}


def unsealed(row: object) -> dict[str, Any]:
    """Return a row without its checksum, if it has one.

    Raises:
        TypeError: it is no row.
        ValueError: it is not as it was sealed.
    """
    if not is_mapping(row):
        raise TypeError(f"expected a JSON object, got {type(row).__name__}")
    plain = {name: value for name, value in row.items() if name != SEAL}
    if SEAL in row and row[SEAL] != _checksum(plain):
        raise ValueError(f"{SEAL} is not that of the line, which has changed since")
    return plain


def _checksum(row: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(row).encode())


def _parse(where: str, line: str) -> dict[str, Any]:
    require_text(where, line)
    try:
        found = json.loads(line)
    except UNREADABLE as error:
        raise RowError(where, f"not valid JSON ({error})") from None
    row = require_object(where, found)
    if "\\u" in line:
        require_characters(where, row)
    return row


def require_object(where: str, row: object) -> dict[str, Any]:
    """Return a row of JSON, or refuse what is no object.

    Raises:
        RowError: it is something else; `where` is how the message names the place.
    """
    if not isinstance(row, dict):
        raise RowError(where, f"expected a JSON object, got {type(row).__name__}")
    return cast(dict[str, Any], row)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn what the system refuses into one line.

    Raises:
        Unwritable: a file or folder at `path`, or below it, could not be written.
    """
    try:
        yield
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({error.strerror or error})") from None


def make_folder(path: Path) -> None:
    """Make a folder where there is none."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def require_writable(path: Path) -> None:
    """Find out before hours of work whether a file can be written; its folder is made."""
    make_folder(path.parent)
    with writing(path):
        descriptor, name = mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.write(descriptor, b"\n")
        finally:
            os.close(descriptor)
            os.unlink(name)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to a file; where that fails, the file is as it was."""
    line = json.dumps(row, ensure_ascii=False) + "\n"
    with writing(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            _write_all(file.fileno(), line.encode())
        except BaseException:
            with suppress(OSError):
                file.truncate(size)
            raise


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


@contextmanager
def replacing_file(path: Path) -> Generator[Path]:
    """Yield a place to write a file to; once it is whole and on the disk, it is renamed to `path`.

    What is written in vain is removed, by the next process if this one is killed.

    Raises:
        Unwritable: it could not be written; what was there before is untouched.
    """
    mark = f".{path.name}.{platform.node()}."
    temporary = path.with_name(f"{mark}{os.getpid()}")
    with writing(path):
        _remove_abandoned(path.parent, mark)
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _remove_abandoned(folder: Path, mark: str) -> None:
    """Remove what processes of this machine were writing when they were killed."""
    for file in folder.iterdir():
        number = file.name.removeprefix(mark)
        if file.name.startswith(mark) and number.isdigit() and not _is_alive(int(number)):
            file.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(file: Path) -> None:
    """Wait until a file is on the disk: a crash of the machine would leave an empty one."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old file or the whole new one."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
