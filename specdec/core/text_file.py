"""Text files: UTF-8, packed or not, and complaints of what is no text."""

import gzip
import re
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from specdec.core.errors import RowError, UserError
from specdec.core.narrowing import is_list, is_mapping

UTF_8 = "utf-8-sig"  # files of some editors begin with a byte order mark, which is no text
HALF = "half a character"
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no text in any encoding


@contextmanager
def opened(path: Path) -> Generator[TextIO]:
    """Open a text file, unpacked if its name ends in `.gz`.

    Bytes that are not UTF-8 are read as half characters, which `require_text` knows.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with (
            gzip.open(path, "rt", encoding=UTF_8, errors="surrogateescape")
            if path.suffix.lower() == ".gz"
            else path.open(encoding=UTF_8, errors="surrogateescape")
        ) as file:
            yield cast(TextIO, file)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def require_text(where: str, text: str) -> None:
    """Refuse text of an `opened` file whose bytes are not UTF-8.

    Raises:
        RowError: they are not; `where` is how the message names the place.
    """
    half = SURROGATE.search(text)
    if half is not None:
        byte = ord(half[0]) & 0xFF
        raise RowError(where, f"cannot be read as UTF-8 text (byte 0x{byte:02x})")


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    with opened(path) as file:
        text = file.read()
    require_text(str(path), text)
    return text


def require_characters(where: str, value: object) -> None:
    """Refuse values of JSON that hold half a character, which only an escape can spell.

    Raises:
        RowError: there is one; `where` is how the message names the place.
    """
    if isinstance(value, str):
        half = SURROGATE.search(value)
        if half is not None:
            around = value[max(0, half.start() - 20) : half.end() + 20]
            what = f"half a character (a lone surrogate, {ascii(half[0])[1:-1]})"
            raise RowError(where, f"{around!a} holds {what}; expected whole ones", HALF)
    elif is_mapping(value):
        for name, each in value.items():
            require_characters(where, name)
            require_characters(where, each)
    elif is_list(value):
        for each in value:
            require_characters(where, each)
