"""Training text: `.txt`, or JSONL rows with `text`, `messages` or `conversations`."""

from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.jsonl import read_jsonl, read_text


def read_documents(path: str | Path, field: str = "data.path") -> list[str]:
    """Read every document of a file; a `.txt` file is one document.

    Raises:
        UserError: the file is missing, empty, of another kind, or has a row without a known text
            field; `field` is how the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{field}={str(path)!r}: no such file")
    if path.suffix == ".jsonl":
        documents = [_document(path, number, row) for number, row in read_jsonl(path)]
    elif path.suffix == ".txt":
        documents = [read_text(path)]
    else:
        raise UserError(f"{field}={str(path)!r}: expected a file ending in .txt or .jsonl")
    documents = [document for document in documents if document]
    if not documents:
        raise UserError(f"{field}={str(path)!r}: the file holds no text")
    return documents


def _document(path: Path, number: int, row: dict[str, Any]) -> str:
    if isinstance(row.get("text"), str):
        return row["text"]
    turns = row.get("messages") or row.get("conversations")  # a null counts as absent
    if isinstance(turns, list):
        return "\n".join(_turn(path, number, turn) for turn in turns)
    raise UserError(f"{path}:{number}: expected a field `text`, `messages` or `conversations`")


def _turn(path: Path, number: int, turn: Any) -> str:
    """One message as `role: content`; ShareGPT says `from` and `value`."""
    if not isinstance(turn, dict):
        raise UserError(f"{path}:{number}: a message must be an object, got {turn!r}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(
            f"{path}:{number}: a message needs `role` and `content` (or `from`, `value`)"
        )
    return f"{role}: {content}"
