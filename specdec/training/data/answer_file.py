"""A JSONL file of generated texts that grows row by row and outlives interruptions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.core.digest import digest
from specdec.core.errors import UserError
from specdec.core.jsonl import (
    append_row,
    make_folder,
    sealed,
    whole_rows,
    write_json,
    write_jsonl,
    writing,
)
from specdec.training.data.manifest import differences, read


class AnswerFile:
    """Rows with an `id`, and beside them `FILE.json`: their settings, and what all of them are.

    Rows are appended in the order in which texts end; when all are there they are put into that of
    the prompts, so that an interruption leaves no trace. One process at a time may write.
    """

    def __init__(self, path: str, settings: Mapping[str, object]):
        self._path = Path(path)
        self._manifest = Path(f"{path}.json")
        self._settings = settings

    def is_complete(self) -> bool:
        """Whether every row is there, as it was written.

        Raises:
            UserError: the file was written with other settings, or by something else.
        """
        present = self._path.exists()  # looked at first: another process may be about to begin
        if not self._manifest.exists():
            if present:
                raise self._refusal("was not written by `distill`")
            return False
        differing = differences(self._manifest, self._settings)
        if differing:
            raise self._refusal(f"was written with other settings ({', '.join(differing)} differ)")
        found = read(self._manifest)
        is_there = found.get("complete") is True and self._path.exists()
        return is_there and found.get("digest") == digest(self._path)

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"distill.path={str(self._path)!r}: {reason}; choose another file, or delete this one"
            f" and {self._manifest.name}"
        )

    def begin(self, ids: Sequence[str]) -> set[str]:
        """Claim the file for rows of these ids and return those that are there already."""
        make_folder(self._path.parent)
        self._describe(ids, complete=False)
        wanted = set(ids)
        rows = [row for row in whole_rows(self._path) if row.get("id") in wanted]
        write_jsonl(self._path, map(sealed, rows))  # without what is damaged
        return {row["id"] for row in rows}

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it is safe from the end of this process on."""
        append_row(self._path, sealed(row))

    def finish(self, ids: Sequence[str]) -> None:
        """Put the rows into the order of `ids` and say that all are there."""
        rows = {row["id"]: row for row in whole_rows(self._path)}
        write_jsonl(self._path, [sealed(rows[each]) for each in ids])
        with writing(self._path):
            self._describe(ids, complete=True)

    def _describe(self, ids: Sequence[str], complete: bool) -> None:
        state = {"num_samples": len(ids), "complete": complete}
        if complete:
            state["digest"] = digest(self._path)
        write_json(self._manifest, {**self._settings, **state})
