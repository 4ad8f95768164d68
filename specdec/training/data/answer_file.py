"""A JSONL file of generated texts that grows row by row and outlives interruptions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.jsonl import whole_rows, write_json, write_jsonl
from specdec.training.data.manifest import differences, read


class AnswerFile:
    """Rows with an `id`, and beside them `FILE.json`: their settings, and whether all are there.

    Rows are appended in the order in which texts end; when all are there they are put into that of
    the prompts, so that an interruption leaves no trace. One process at a time may write.
    """

    def __init__(self, path: str, settings: Mapping[str, object]):
        self._path = Path(path)
        self._manifest = Path(f"{path}.json")
        self._settings = settings

    def is_complete(self) -> bool:
        """Whether every row is there.

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
        return read(self._manifest)["complete"] is True and self._path.exists()

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"distill.path={str(self._path)!r}: {reason}; choose another file, or delete this one"
            f" and {self._manifest.name}"
        )

    def begin(self, ids: Sequence[str]) -> set[str]:
        """Claim the file for rows of these ids and return those that are there already."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._describe(ids, complete=False)
        rows = list(whole_rows(self._path))
        write_jsonl(self._path, rows)  # without a line that a crash has torn
        return {row["id"] for row in rows}

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it is safe from the end of this process on."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); the same command goes on from here"
            raise UserError(f"distill.path={str(self._path)!r}: {reason}") from None

    def finish(self, ids: Sequence[str]) -> None:
        """Put the rows into the order of `ids` and say that all are there."""
        rows = {row["id"]: row for row in whole_rows(self._path)}
        write_jsonl(self._path, [rows[each] for each in ids])
        self._describe(ids, complete=True)

    def _describe(self, ids: Sequence[str], complete: bool) -> None:
        state = {"num_samples": len(ids), "complete": complete}
        write_json(self._manifest, {**self._settings, **state})
