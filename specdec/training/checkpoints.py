"""Checkpoints of a training run: each whole or absent, the newest few kept."""

import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

from specdec.core.errors import UserError


class Checkpoints:
    """Folders `step-N`: model, optimizer, schedule and random states, each whole or absent."""

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
        path = saved[-1] if source == "latest" else Path(source)
        if not path.is_dir() or not is_checkpoint(path):
            expected = "a folder step-N below `checkpoints`, or latest"
            raise UserError(f"resume_from_checkpoint={source!r}: expected {expected}")
        accelerator.load_state(str(path))
        step = _step(path)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for abandoned in [other for other in saved if _step(other) > step]:
                shutil.rmtree(abandoned)
        return step

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Save under a temporary name, rename, and drop the oldest beyond the limit."""
        target = self.folder / f"step-{step}"
        temporary = self.folder / f".step-{step}"
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
            for old in self.saved()[: -self._limit]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder bears the name that only complete checkpoints get."""
    return re.fullmatch(r"step-\d+", path.name) is not None
