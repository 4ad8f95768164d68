"""Explanations on disk, where reports find them."""

import json
from pathlib import Path

from specdec.core.errors import UserError
from specdec.core.jsonl import write_json
from specdec.results.explanation import Explanation

FILE = "explanation.json"


def save(folder: Path, explanation: Explanation) -> None:
    """Write an explanation where reports look for it."""
    write_json(folder / FILE, explanation.to_row())


def explanations(folder: Path) -> dict[str, Explanation]:
    """Read all explanations in a folder and below, by the folders that they lie in.

    Raises:
        UserError: one of them is damaged.
    """
    found: dict[str, Explanation] = {}
    for file in sorted(folder.rglob(FILE)):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            found[str(file.parent.relative_to(folder))] = Explanation.from_row(row)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: is no explanation ({error})") from None
    return found
