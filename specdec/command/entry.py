"""What a command does, as its module declares it: `ENTRY = Entry(task)`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

Task = Callable[[DictConfig], object]


@dataclass(frozen=True)
class Sweepable:
    """What a sweep must know of the command whose jobs it runs."""

    check: Callable[[DictConfig], None]  # refuses a configuration before any model is loaded
    name: Callable[[DictConfig, Sequence[str]], str]  # of a job's folder, given the swept options
    finish: Callable[[Path], None]  # writes the report of a folder of runs


@dataclass(frozen=True)
class Entry:
    """The work of a command; with `sweepable` its command line may stand for many jobs."""

    task: Task
    sweepable: Sweepable | None = None
