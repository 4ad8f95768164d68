"""Sweeps that survive: what runs, what is there already, and what failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from specdec.core.errors import Unfit, UserError

Task = Callable[[DictConfig], object]
MULTIRUN_FLAGS = {"-m", "--multirun"}


@dataclass(frozen=True)
class Sweepable:
    """What a sweep must know of the entry point whose jobs it runs."""

    check: Callable[[DictConfig], None]  # refuses a configuration before any model is loaded
    name: Callable[[DictConfig, Sequence[str]], str]  # of a job's folder, given the swept options
    finish: Callable[[Path], None]  # writes the report of a folder of runs


@dataclass
class Plan:
    """The jobs of a sweep, each run once, however many combinations of options come to it."""

    folder: Path
    keys: list[str]  # the options that are swept
    jobs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # overrides, by name
    unfit: dict[str, int] = field(default_factory=dict[str, int])  # reasons: how many combinations
    num_combinations: int = 0

    def states(self) -> dict[str, str]:
        """Return the state of each job's run as its folder has it, `new` where there is none."""
        from specdec.report.run_dir import state_of

        return {name: state_of(self.folder / name) for name in self.jobs}

    def run(
        self,
        launch: Callable[[Task], object],
        task: Task,
        sweepable: Sweepable,
    ) -> int:
        """Let Hydra run the jobs, write the report, and return the exit status."""
        announce(self)
        if "dry_run=true" in sys.argv:
            print_jobs(self)
            return 0
        missing = sum(state != "complete" for state in self.states().values())
        # What every job is told about the sweep that it is part of.
        told = {"over": f"[{','.join(self.keys)}]", "missing": missing, "started": time.time()}
        sys.argv += [f"sweep.{name}={value}" for name, value in told.items()]
        launch(surviving(task))
        return finish(self, sweepable)


def plan(config_name: str, arguments: Sequence[str], sweepable: Sweepable) -> Plan | None:
    """Compose and check every combination that a command line stands for; None if it is one run.

    Combinations that cannot be (a rule that is not for such candidates) are left out.

    Raises:
        UserError: an option is wrong in itself, or no combination can be.
    """
    given = [argument for argument in arguments if not argument.startswith("-")]
    parser = OverridesParser.create()
    fixed = [text for text in given if not parser.parse_override(text).is_sweep_override()]
    with hydra.initialize_config_module("specdec.configs", version_base="1.3"):
        root = hydra.compose(config_name, _local(fixed), return_hydra_config=True).hydra
        if root.mode != RunMode.MULTIRUN and not MULTIRUN_FLAGS & set(arguments):
            return None
        params = [f"{key}={value}" for key, value in (root.sweeper.get("params") or {}).items()]
        parsed = parser.parse_overrides([*params, *given])
        keys = {each.get_key_element(): each.is_sweep_override() for each in parsed}
        found = Plan(Path(root.sweep.dir), [key for key, swept in keys.items() if swept])
        for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
            _add(found, overrides, hydra.compose(config_name, _local(overrides)), sweepable)
    if not found.jobs:
        raise UserError(f"nothing to run: {'; '.join(found.unfit)}")
    return found


def _local(overrides: Sequence[str]) -> list[str]:
    """Leave out what says where jobs are run: a launcher may be missing on this machine."""
    return [text for text in overrides if not text.startswith("hydra/launcher=")]


def _add(found: Plan, overrides: list[str], config: DictConfig, sweepable: Sweepable) -> None:
    found.num_combinations += 1
    try:
        sweepable.check(config)
    except Unfit as reason:
        found.unfit[str(reason)] = found.unfit.get(str(reason), 0) + 1
    else:
        found.jobs.setdefault(sweepable.name(config, found.keys), overrides)


def announce(planned: Plan) -> None:
    """Say in a few lines how much there is to do."""
    states = list(planned.states().values())
    done = states.count("complete")
    print(
        f"sweep over {', '.join(planned.keys)}: {len(states)} runs from"
        f" {planned.num_combinations} combinations, {done} complete, {len(states) - done} to run;"
        f" results in {planned.folder}"
    )
    for reason, number in planned.unfit.items():
        print(f"left out, {number} combinations: {reason}")


def print_jobs(planned: Plan) -> None:
    """Print what `--dry-run` is asked for: each run, its state and its options."""
    for name, state in planned.states().items():
        told = [text for text in planned.jobs[name] if not text.startswith(("hydra", "dry_run"))]
        print(f"{state:<12}{name}  {' '.join(told)}")


def run_folder(config: DictConfig, name: Callable[[DictConfig, Sequence[str]], str]) -> Path:
    """Return where a run's results go: in a sweep, to a folder of the run's own."""
    if not in_sweep():
        return Path(HydraConfig.get().runtime.output_dir)
    return Path(HydraConfig.get().sweep.dir) / name(config, config.sweep.over)


def in_sweep() -> bool:
    """Whether this run is one of many."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def surviving(task: Task) -> Task:
    """Let a sweep go on after a job that failed: its run directory knows why."""

    def job(config: DictConfig) -> object:
        try:
            return task(config)
        except Unfit:
            pass  # what was left out; Hydra tries all combinations
        except Exception as error:
            if not hasattr(error, "__notes__"):  # no run directory has noted it
                raise
            print(f"failed: {error.__notes__[0]}: {_first_line(error)}", file=sys.stderr)
        return None

    return job


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def progress(config: DictConfig, folder: Path) -> str:
    """Say how many runs of a sweep are done since it began, and how long the rest will take."""
    from specdec.report.run_dir import state_of

    sweep = config.sweep
    statuses = [file for file in folder.parent.glob("*/status.json")]
    recent = [file.parent for file in statuses if file.stat().st_mtime >= sweep.started]
    done = sum(state_of(path) in ("complete", "failed") for path in recent)
    left = max(0, sweep.missing - done)
    seconds = (time.time() - sweep.started) / max(1, done) * left
    return f"[{done}/{sweep.missing}]" + (f" {_duration(seconds)} left" if left else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def finish(planned: Plan, sweepable: Sweepable) -> int:
    """Write the report, list what is not complete, and return the exit status."""
    states = planned.states()
    if "complete" in states.values():
        sweepable.finish(planned.folder)
    running = [name for name, state in states.items() if state == "running"]
    if running:
        print(f"{len(running)} runs are being decoded by another process, which will report them")
    failed = [name for name, state in states.items() if state in ("failed", "interrupted", "new")]
    for name in failed:
        why = planned.folder / name / "status.json"
        print(f"{states[name]}: {name}: {_last_line(why)}", file=sys.stderr)
    if failed:
        print(
            f"error: {len(failed)} of {len(states)} runs are not complete (tracebacks in"
            " status.json); the same command tries them again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _last_line(status: Path) -> str:
    from specdec.report.run_dir import read_status

    error = (read_status(status.parent) or {}).get("error")
    return error.strip().splitlines()[-1] if error else "never finished"
