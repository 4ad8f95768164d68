"""A JSONL file of generated texts that grows row by row and outlives interruptions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from specdec.core.digest import digest, digest_of
from specdec.core.errors import UserError
from specdec.core.jsonl import (
    append_row,
    make_folder,
    sealed,
    whole_rows,
    write_jsonl,
    writing,
)
from specdec.core.vouching import read_note, write_note
from specdec.training.data.manifest import differences

OF = "settings"  # of a row: what it was written with


class AnswerFile:
    """Rows with an `id`, and beside them `FILE.json`: their settings, and what all of them are.

    Rows are appended in the order in which texts end; when all are there they are put into that of
    the prompts, so that an interruption leaves no trace. Each row has a checksum and says which
    settings it is of, and the manifest vouches for the whole file: what is damaged, or of another
    file, is written again. One process at a time may write, `held`.
    """

    def __init__(self, path: str, settings: Mapping[str, object]):
        self._path = Path(path)
        self._manifest = Path(f"{path}.json")
        self._settings = settings
        self._of = digest_of(json.dumps(settings, sort_keys=True).encode())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing; where one writes already, wait for it."""
        make_folder(self._path.parent)
        lock = FileLock(f"{self._path}.lock")
        with writing(self._path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"{self._path}: being written by another process; waiting for it", flush=True)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def is_complete(self) -> bool:
        """Whether every row is there, as it was written; all bytes are read.

        Raises:
            UserError: the file was written with other settings, or by something else.
        """
        present = self._path.exists()  # looked at first: another process may be about to begin
        found = read_note(self._manifest)
        if found is None:
            if present and not any(self._rows()) and self._path.stat().st_size:
                raise self._refusal("was not written by `distill` with these settings")
            return False
        differing = differences(found, self._settings)
        if differing:
            raise self._refusal(f"was written with other settings ({', '.join(differing)} differ)")
        is_there = found.get("complete") is True and self._path.exists()
        return is_there and found.get("digest") == digest(self._path)

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"distill.path={str(self._path)!r}: {reason}; choose another file, or delete this one"
            f" and {self._manifest.name}"
        )

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield what was written with these settings, and is as it was written."""
        return (row for row in whole_rows(self._path) if row.get(OF) == self._of)

    def begin(self, ids: Sequence[str]) -> set[str]:
        """Claim the file for rows of these ids and return those that are there already."""
        was_complete = (read_note(self._manifest) or {}).get("complete") is True
        self._describe(ids, complete=False)
        wanted = set(ids)
        rows = {row["id"]: row for row in self._rows() if row.get("id") in wanted}
        if was_complete:
            missing = f"{len(wanted) - len(rows)} of {len(wanted)} answers"
            print(f"{self._path}: not as it was written; {missing} are given again", flush=True)
        write_jsonl(self._path, map(sealed, rows.values()))  # without what is damaged
        return set(rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it is safe from the end of this process on."""
        append_row(self._path, sealed({**row, OF: self._of}))

    def finish(self, ids: Sequence[str]) -> None:
        """Put the rows into the order of `ids` and say that all are there."""
        rows = {row["id"]: row for row in self._rows()}
        write_jsonl(self._path, [sealed(rows[each]) for each in ids])
        with writing(self._path):
            self._describe(ids, complete=True)

    def _describe(self, ids: Sequence[str], complete: bool) -> None:
        state = {"num_samples": len(ids), "complete": complete}
        if complete:
            state["digest"] = digest(self._path)
        write_note(self._manifest, {**self._settings, **state})


def require_whole(path: Path, option: str) -> None:
    """Refuse answers, named as data, that are not those that `distill` completed.

    Raises:
        UserError: they are interrupted or damaged; `option` is how the message names them.
    """
    note = read_note(Path(f"{path}.json")) or {}
    if not {"complete", "num_samples", "prompt_tokens"} <= note.keys():
        return  # nothing of ours
    if note["complete"] is not True or note.get("digest") != digest(path):
        what = "interrupted, or not as they were written"
        instead = f"distill.path={path} with the data that were answered, which mends them"
        raise UserError(f"{option}={str(path)!r}: answers that are {what}; expected {instead}")
