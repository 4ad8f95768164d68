"""A folder that one process at a time works in: its lock, and `status.json`, how that ended."""

import os
import platform
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from specdec.core.errors import Unwritable
from specdec.core.jsonl import make_folder, write_json, writing
from specdec.core.vouching import changed, read_note, vouch

COMPLETE, DAMAGED = "complete", "damaged"


class Session:
    """Hold a folder's lock, and note in `status.json` what comes of the work in it.

    Used as a context manager. Whoever enters looks at `taken` first. Nothing is changed before
    `_say_started`; from then on `status.json` says "started", and leaving well makes it "complete",
    Ctrl-C and other ends from outside "interrupted", and any other exception "failed", with its
    traceback. With `one_of_many` a failure before that is noted, too. A failure that cannot be
    noted is still the one that is raised.

    Raises (on entering):
        UserError: the folder cannot be written, or holds something else (see `_look_around`).
    """

    kind: ClassVar[str] = "run"
    files: ClassVar[Sequence[str]] = ()  # that `status.json` vouches for, as far as they are there
    at_work: ClassVar[str] = "being written by another process"

    def __init__(self, path: Path, identity: str, one_of_many: bool = False):
        self.path = path
        self.taken: str | None = None  # why nothing is to be done here
        self._identity = identity
        self._one_of_many = one_of_many
        self._has_started = False
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> "Session":
        make_folder(self.path)
        with writing(self.path):
            try:
                self._lock.acquire(timeout=1)  # somebody may just be looking whether it is held
            except Timeout:
                self.taken = self.at_work
                return self
        try:
            self._look_around()
        except BaseException:
            self._lock.release()
            raise
        self._entered = time.time()
        return self

    def _look_around(self) -> None:
        """Find out whether there is anything to be done; sets `taken`, or raises a UserError."""

    def _say_started(self) -> None:
        self._has_started = True
        self._status("started")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            counts = self._has_started or (error is not None and self._one_of_many)
            if counts and self.taken is None:
                self._note_end(error)
        finally:
            self._lock.release()

    def _note_end(self, error: BaseException | None) -> None:
        if error is None:
            self._status(COMPLETE)
            return
        failed = isinstance(error, Exception) and not isinstance(error, BrokenPipeError)
        with suppress(Unwritable):  # what made it fail may well forbid to note it
            self._status("failed" if failed else "interrupted", error if failed else None)
            if failed:
                error.add_note(self.path.name)  # for whoever goes on with other runs

    def _status(self, state: str, error: BaseException | None = None) -> None:
        status = {
            "kind": self.kind,
            "state": state,
            "error": None if error is None else "".join(traceback.format_exception(error)),
            "identity": self._identity,
            "host": platform.node(),
            "pid": os.getpid(),
            "seconds": round(time.time() - self._entered, 3),
        }
        if state == COMPLETE:
            status["files"] = self._vouched(self.path)
        write_json(self.path / "status.json", status)

    @classmethod
    def bears_out(cls, path: Path, status: Mapping[str, Any]) -> bool:
        """Whether the files in `path` are those that its status calls complete, byte for byte."""
        listed = status.get("files")
        return isinstance(listed, dict) and bool(listed) and not changed(path, listed)

    @classmethod
    def _vouched(cls, path: Path) -> dict[str, str]:
        """Return digests of what is complete, by file name."""
        return vouch(path, cls.files)

    @classmethod
    def state_of(cls, path: Path) -> str:
        """Return `new`, `running`, `interrupted`, `failed`, `complete` or `damaged`.

        What was killed is interrupted. It is running as long as a process holds the lock, and
        damaged where `status.json` says that it is complete, and its files are not those it was
        completed with.
        """
        status = read_status(path)
        state = "new" if status is None else str(status["state"])
        if status is not None and state == COMPLETE and cls.bears_out(path, status):
            return state
        if _is_locked(path / ".lock"):
            return "running"
        return {"started": "interrupted", COMPLETE: DAMAGED}.get(state, state)


def read_status(path: Path) -> dict[str, Any] | None:
    """Return what `status.json` says; None where there is none, or none that can be read."""
    found = read_note(path / "status.json")
    return found if found is not None and {"state", "identity"} <= found.keys() else None


def _is_locked(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # where nobody can write, nobody does
        return False
