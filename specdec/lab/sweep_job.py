"""What a run knows of the sweep that it is part of."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.core.duration import in_words
from specdec.results.session import read_status


@dataclass(frozen=True)
class SweepJob:
    """One of `missing` runs of a sweep `over` some options, which `started` at a time of the clock.

    A run of its own is of no sweep: nothing was started.
    """

    over: tuple[str, ...] = ()
    missing: int = 0
    started: float = 0.0

    @classmethod
    def of(cls, node: Mapping[str, Any] | None) -> "SweepJob":
        """Read the node `sweep`; None: the command does not sweep."""
        return cls() if node is None else cls(tuple(node["over"]), node["missing"], node["started"])

    @property
    def is_one_of_many(self) -> bool:
        """Whether there is a sweep."""
        return self.started > 0

    def progress(self, folder: Path) -> str:
        """Say how many runs are done since it began, and how long the rest will take.

        Args:
            folder: of this run, beside those of the others.
        """
        files = list(folder.parent.glob("*/status.json"))
        recent = [file.parent for file in files if file.stat().st_mtime >= self.started]
        statuses = [read_status(path) or {} for path in recent]
        done = sum(status.get("state") in ("complete", "failed") for status in statuses)
        left = max(0, self.missing - done)
        seconds = (time.time() - self.started) / max(1, done) * left
        return f"[{done}/{self.missing}]" + (f" {in_words(seconds)} left" if left else "")
