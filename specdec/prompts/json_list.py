"""The elements of a JSON list, one at a time: a file of gigabytes is never held as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from specdec.core.errors import UserError
from specdec.core.jsonl import UNREADABLE
from specdec.core.text_file import require_text

PIECE = 1 << 20  # characters that are read at once
BLANKS = " \t\n\r"


def scan_list(path: Path, file: TextIO) -> Iterator[object]:
    """Yield the elements of the list that a file holds.

    Raises:
        UserError: it holds none, or one that is broken; `path` is how the message names it.
    """
    text = _Text(path, file)
    first = text.peek()
    if first != "[":
        kind = type(text.value()).__name__
        text.require_end()
        raise UserError(f"{path}: expected a list of rows, got {kind}")
    text.skip()
    while text.peek() != "]":
        yield text.value()
        if text.peek() == ",":
            text.skip()
            text.require("]", absent=True)
        else:
            text.require("]", absent=False)
    text.skip()
    text.require_end()


class _Text:
    """What of a file is read and not yet understood."""

    def __init__(self, path: Path, file: TextIO):
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder()
        self._text, self._at = "", 0
        self._size = PIECE

    def peek(self) -> str:
        """Return the next character that is not blank; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in BLANKS:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Leave a character behind."""
        self._at += 1

    def value(self) -> object:
        """Return the next value; a longer piece is read until it is whole."""
        self.peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except UNREADABLE as error:
                if not self._more():
                    raise self._broken(str(error)) from None
                continue
            # A number at the end of a piece may go on in the next.
            if end < len(self._text) or not self._more():
                self._at = end
                self._size = PIECE
                return found

    def require(self, character: str, absent: bool) -> None:
        """Refuse what is no list."""
        if (self.peek() == character) is absent:
            raise self._broken("expected a value" if absent else "expected ',' or ']'")

    def require_end(self) -> None:
        """Refuse what stands behind the list."""
        if self.peek():
            raise self._broken("something stands behind it")

    def _more(self) -> bool:
        """Read on; twice as much each time, so that long values are not read over and over."""
        piece = self._file.read(self._size)
        require_text(str(self._path), piece)
        self._text, self._at = self._text[self._at :] + piece, 0
        self._size *= 2
        return bool(piece)

    def _broken(self, reason: str) -> UserError:
        return UserError(
            f"{self._path}: not valid JSON ({reason}); one object a line belongs in a .jsonl file"
        )
