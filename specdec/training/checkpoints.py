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

from specdec.core.digest import digest
from specdec.core.errors import Unwritable, UserError
from specdec.core.jsonl import flush, write_json
from specdec.training.data.manifest import read

FILES = "files.json"  # of a checkpoint: the digests of the others

# What reading a truncated or overwritten file of torch, safetensors or pickle raises.
DAMAGE = (
    *(OSError, EOFError, KeyError, RuntimeError, ValueError),
    *(pickle.UnpicklingError, SafetensorError),
)


class Checkpoints:
    """Folders `step-N`: model, optimizer, schedule and random states, each whole or absent.

    `files.json` says what was written; a checkpoint of other files is damaged.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder = folder
        self._limit = limit

    def saved(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        found = filter(is_checkpoint, self.folder.glob("step-*"))
        return sorted(found, key=_step)

    def resume(self, accelerator: Accelerator, source: str | None) -> int:
        """Load `source` (a folder, "latest" or None) and return the step it was saved at.

        Later checkpoints of this run are dropped: the run takes another way from here.
        """
        saved = self.saved()
        if source is None and saved:
            raise UserError(
                f"output={str(self.folder.parent)!r}: there are checkpoints of an earlier run; set"
                " trainer.resume_from_checkpoint=latest to go on with it, or choose another folder"
            )
        if source is None or (source == "latest" and not saved):
            return 0
        if source == "latest":
            step = self._load_newest(accelerator, saved)
        else:
            path = Path(source)
            if not path.is_dir() or not is_checkpoint(path):
                expected = "a folder step-N below `checkpoints`, or latest"
                raise UserError(f"resume_from_checkpoint={source!r}: expected {expected}")
            reason = _load(accelerator, path)
            if reason is not None:
                raise UserError(f"resume_from_checkpoint={source!r}: damaged ({reason})")
            step = _step(path)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for abandoned in [other for other in saved if _step(other) > step]:
                shutil.rmtree(abandoned)
        return step

    def _load_newest(self, accelerator: Accelerator, saved: Sequence[Path]) -> int:
        """Load the newest checkpoint that is not damaged."""
        for path in reversed(saved):
            reason = _load(accelerator, path)
            if reason is None:
                return _step(path)
            accelerator.print(f"{path}: damaged ({reason}); trying the one before it")
        raise UserError(f"{self.folder}: every checkpoint is damaged; remove them to start afresh")

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Save under a temporary name, rename, and drop the oldest beyond the limit."""
        target = self.folder / f"step-{step}"
        temporary = self.folder / f".step-{step}"
        with refused_writes(temporary):
            accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with refused_writes(temporary):
                write_json(temporary / FILES, _digests(temporary))
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
        reason = str(error).splitlines()[0]
        kept = "what was saved before is untouched, and a resumed run goes on from it"
        raise Unwritable(f"{temporary.parent}: cannot be written ({reason}); {kept}") from None


def _is_refusal(error: Exception) -> bool:
    """Whether a write failed; torch and tokenizers have no class of their own for it."""
    known = isinstance(error, OSError | SafetensorError | Unwritable)
    return known or any(mark in str(error) for mark in ("PytorchStreamWriter", "(os error"))


def _load(accelerator: Accelerator, path: Path) -> str | None:
    """Load a checkpoint; returns what is wrong with it, if something is."""
    try:
        listed, found = read(path / FILES), _digests(path)
        differing = [name for name in listed if found.get(name) != listed[name]]
        if differing:
            return f"{', '.join(differing)} changed since"
        accelerator.load_state(str(path))
    except DAMAGE as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != FILES]
    return {file.relative_to(folder).as_posix(): digest(file) for file in files}


def _flush_all(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            flush(file)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder bears the name that only complete checkpoints get."""
    return re.fullmatch(r"step-\d+", path.name) is not None
