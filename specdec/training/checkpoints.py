"""Checkpoints of a training run: each whole or absent, the newest few kept."""

import os
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from specdec.core.errors import Unwritable, UserError, first_line
from specdec.core.jsonl import flush
from specdec.core.vouching import changed, read_note, vouch, write_note
from specdec.training.record import Record

FILES = "files.json"  # of a checkpoint: its step, and the digests of the others

# What reading a truncated or overwritten file of torch, safetensors or pickle raises.
DAMAGE = (
    *(OSError, EOFError, KeyError, RuntimeError, ValueError),
    *(pickle.UnpicklingError, SafetensorError),
)


class Checkpoints:
    """Folders `step-N`: model, optimizer and random states, each whole or absent.

    `identity.json` says of which training it is, and `files.json` what was written at which step;
    a checkpoint of other files, or under another's name, is damaged.
    """

    def __init__(self, folder: Path, limit: int, record: Record):
        self.folder = folder
        self._limit = limit
        self._record = record

    def saved(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        found = filter(is_checkpoint, self.folder.glob("step-*"))
        return sorted(found, key=_step)

    def resume(
        self, accelerator: Accelerator, source: str | None, at_most: int | None = None
    ) -> int:
        """Load `source`, or else the newest that is whole; returns the step it was saved at, or 0.

        With `at_most` later steps do not come into question.

        Later checkpoints of this run are dropped: the run takes another way from here.

        Raises:
            UserError: `source` is no checkpoint, damaged, or of another training; or all are
                damaged.
        """
        saved = self.saved()
        if source is None:
            wanted = [path for path in saved if at_most is None or _step(path) <= at_most]
            step = self._load_newest(accelerator, wanted)
        else:
            step = self._load_named(accelerator, source)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for abandoned in [other for other in saved if _step(other) > step]:
                shutil.rmtree(abandoned)
        return step

    def _load_named(self, accelerator: Accelerator, source: str) -> int:
        named = f"resume_from_checkpoint={source!r}"
        path = Path(source)
        if not path.is_dir() or not is_checkpoint(path):
            raise UserError(f"{named}: expected a folder step-N below `checkpoints`")
        self._record.require_same(path, named, "the same options, or another checkpoint")
        reason = _load(accelerator, path)
        if reason is not None:
            raise UserError(f"{named}: damaged ({reason})")
        return _step(path)

    def _load_newest(self, accelerator: Accelerator, saved: Sequence[Path]) -> int:
        """Load the newest checkpoint that is not damaged."""
        for path in reversed(saved):
            reason = _damage(path)
            if reason is None:
                instead = "the same options, another output=DIR, or resume=false to train anew"
                self._record.require_same(path, str(path), instead)
                reason = _load(accelerator, path)
            if reason is None:
                return _step(path)
            accelerator.print(f"{path}: damaged ({reason}); trying the one before it")
        if saved:
            expected = "another output=DIR, or resume=false to train anew"
            raise UserError(f"{self.folder}: every checkpoint is damaged; expected {expected}")
        return 0

    def reaches_back_to(self, step: int) -> bool:
        """Whether there is a whole checkpoint of a step, or of one before it."""
        return any(_step(path) <= step and _damage(path) is None for path in self.saved())

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Save under a temporary name, rename, and drop the oldest beyond the limit."""
        target = self.folder / f"step-{step}"
        temporary = self.folder / f".step-{step}"
        with refused_writes(temporary):
            accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with refused_writes(temporary):
                self._record.write(temporary)
                write_note(temporary / FILES, {"step": step, "files": _digests(temporary)})
                _flush_all(temporary)
                if target.exists():
                    shutil.rmtree(target)
                os.replace(temporary, target)
            for old in self.saved()[: -self._limit]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a place to write files to; once they are whole, they take their place in `folder`."""
    temporary = folder / ".new"
    with refused_writes(temporary):
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir(parents=True)
        yield temporary
        _flush_all(temporary)
        # Weights come last: where they are, everything is.
        for path in sorted(temporary.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        temporary.rmdir()


@contextmanager
def refused_writes(temporary: Path) -> Iterator[None]:
    """Turn a full disk into one line, and give back what was written in vain.

    Raises:
        Unwritable: a file below `temporary` could not be written; no other file was touched.
    """
    try:
        yield
    except Exception as error:
        if not _is_refusal(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        reason = first_line(error)
        kept = "what was saved before is untouched, and a resumed run goes on from it"
        raise Unwritable(f"{temporary.parent}: cannot be written ({reason}); {kept}") from None


def _is_refusal(error: Exception) -> bool:
    """Whether a write failed; torch and tokenizers have no class of their own for it."""
    known = isinstance(error, OSError | SafetensorError | Unwritable)
    return known or any(mark in str(error) for mark in ("PytorchStreamWriter", "(os error"))


def _damage(path: Path) -> str | None:
    """Return what of a checkpoint is not as it was written."""
    note = read_note(path / FILES)
    if note is None or not {"step", "files"} <= note.keys():
        return f"{FILES} is not as it was written"
    if note["step"] != _step(path):
        return f"it is of step {note['step']}"
    return "; ".join(changed(path, note["files"])) or None


def _load(accelerator: Accelerator, path: Path) -> str | None:
    """Load a checkpoint; returns what is wrong with it, if something is."""
    reason = _damage(path)
    if reason is None:
        try:
            accelerator.load_state(str(path))
        except DAMAGE as error:
            return first_line(error)
    return reason


def _digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != FILES]
    return vouch(folder, [file.relative_to(folder).as_posix() for file in files])


def _flush_all(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            flush(file)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder bears the name that only complete checkpoints get."""
    return re.fullmatch(r"step-\d+", path.name) is not None
