"""Sweeps that survive: what runs, what is there already, and what failed."""

from __future__ import annotations

import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

# A launcher wants a public `HydraContext`, of which one field is of this class, and no other is.
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from specdec.command.compose import initialized, with_choices
from specdec.command.entry import Entry, Sweepable, Task
from specdec.command.launch import require_usable
from specdec.command.mistakes import mistake_of
from specdec.command.options import plain
from specdec.command.sweep_plan import Plan, folder_of, plan_of
from specdec.core.errors import UserError
from specdec.core.signals import terminable
from specdec.lab.sweep_job import SweepJob
from specdec.results.processes import Processes
from specdec.results.provenance import of_other_code

FAILED = 1  # exit status


def run(config_name: str, arguments: Namespace, entry: Entry) -> int | None:
    """Run a command line that stands for several jobs; None if it stands for one.

    Returns:
        The exit status: 1 if a job failed.

    Raises:
        UserError: an option is wrong in itself, or no combination of them can be.
    """
    assert entry.sweepable is not None
    sweepable = entry.sweepable
    with initialized(arguments.config_dir):
        planned = plan_of(arguments.config_name or config_name, arguments, sweepable)
        if planned is None:
            return None
        require_usable(planned.root.hydra, next(iter(planned.jobs.values())))
        announce(planned)
        if planned.root.dry_run:
            print_jobs(planned)
            return 0
        reasons = launch(planned, entry.task)
    return finish(planned, sweepable, reasons) if _processes(planned).is_main else 0


def announce(planned: Plan) -> None:
    """Say in a few lines how much there is to do."""
    states = list(planned.states().values())
    done = states.count("complete")
    over = f" over {', '.join(planned.over)}" if planned.over else ""
    print(
        f"sweep{over}: {_count(len(states), 'run')} from"
        f" {_count(planned.num_combinations, 'combination')}, {done} complete,"
        f" {len(states) - done} to run; results in {planned.folder}"
    )
    complete = [n for n, state in planned.states().items() if state == "complete"]
    other_code = of_other_code(planned.folder / name for name in complete)
    if other_code is not None and planned.root.resume:
        print(other_code)
    for reason, number in planned.unfit.items():
        print(f"left out, {_count(number, 'combination')}: {reason}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_jobs(planned: Plan) -> None:
    """Print what `--dry-run` is asked for: each run, its state and its options."""
    for name, state in planned.states().items():
        shown = [text for text in planned.jobs[name] if not text.startswith(("hydra", "dry_run"))]
        print(f"{state:<12}{name}  {' '.join(shown)}")


def launch(planned: Plan, task: Task) -> dict[str, str]:
    """Let Hydra's launcher run the jobs that are not complete; return why jobs failed, by name."""
    resume = planned.root.resume
    missing = [n for n, state in planned.states().items() if state != "complete" or not resume]
    missing = _processes(planned).agreed(missing)
    # Each job knows the sweep that it is part of.
    over = f"sweep.over=[{','.join(planned.over)}]"
    about_sweep = [over, f"sweep.missing={len(missing)}", f"sweep.started={time.time()}"]
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=surviving(task), config=planned.root
    )
    if not missing:
        return {}
    jobs = [[*planned.jobs[name], *about_sweep] for name in missing]
    try:
        ended = launcher.launch(jobs, initial_job_idx=0)
    except Exception as error:  # of a cluster, or of a worker that was killed
        why = _noted(error)
        return {name: why for name, state in planned.states().items() if state != "complete"}
    said = [str(each.return_value) for each in ended if each.status == JobStatus.COMPLETED]
    assert len(said) == len(missing), "a job did not say how it ended"
    return {name: why for name, why in zip(missing, said, strict=True) if why}


def _processes(planned: Plan) -> Processes:
    return Processes(planned.root.get("device", "cpu"))  # trainings have none, and one process


def surviving(task: Task) -> Task:
    """Let a sweep go on after a job that failed; the job returns why it did, or nothing."""

    def job(config: DictConfig) -> object:
        with terminable():  # in a worker of the launcher's, too
            try:
                task(with_choices(config, HydraConfig.get().runtime.choices))
            except BrokenPipeError:  # nobody reads any more what a sweep says
                raise KeyboardInterrupt from None
            except Exception as error:
                # Why is said in the end, once for all runs that failed alike.
                names = getattr(error, "__notes__", [])
                if names:
                    folder = Path(HydraConfig.get().sweep.dir) / names[0]
                    print(f"{sweep_job(config).progress(folder)}  {folder.name}: failed")
                return _noted(error)
        return ""

    return job


def _noted(error: Exception) -> str:
    """Say in one line why something failed; a bug that no run directory has noted is shown."""
    why = mistake_of(error, "decode", [])
    if why is None:
        why = f"{type(error).__name__}: {error}".replace("\n", " ")
        if not hasattr(error, "__notes__"):
            traceback.print_exception(error)
    return why


def run_folder(config: DictConfig, sweepable: Sweepable) -> Path:
    """Return where a run's results go: in a sweep, to a folder of the run's own."""
    if not sweep_job(config).is_one_of_many:
        return Path(HydraConfig.get().runtime.output_dir)
    name = sweepable.name(config, config.sweep.over)
    return folder_of(Path(HydraConfig.get().sweep.dir), name)


def sweep_job(config: DictConfig) -> SweepJob:
    """Read what sweep a configuration is of."""
    return SweepJob.of(plain(config.sweep))


def finish(planned: Plan, sweepable: Sweepable, reasons: Mapping[str, str]) -> int:
    """Write the report, list what is not complete, and return the exit status.

    What jobs of this sweep say they failed of (`reasons`, by run) counts, whatever the folder of
    a run says; only a run that none of them has failed with can be another process's.
    """
    states = planned.states()
    unreported = _reported(planned, sweepable) if "complete" in states.values() else None
    running = [n for n, state in states.items() if state == "running" and n not in reasons]
    if running:
        number = _count(len(running), "run")
        print(f"{number} being decoded by another process, which will report them")
    left = {n: state for n, state in states.items() if state != "complete" and n not in running}
    alike: dict[str, list[str]] = {}
    for name, state in left.items():
        reason = reasons.get(name)
        why = f"{state}: not finished" if reason is None else f"failed: {reason}"
        alike.setdefault(why, []).append(name)
    for why, names in alike.items():
        print(f"{why} ({', '.join(names)})", file=sys.stderr)
    if left:
        print(
            f"error: {len(left)} of {len(states)} runs are not complete (tracebacks in"
            " status.json); the same command tries them again",
            file=sys.stderr,
        )
    if unreported is not None:
        print(f"error: no report: {unreported}", file=sys.stderr)
    return FAILED if left or unreported is not None else 0


def _reported(planned: Plan, sweepable: Sweepable) -> str | None:
    """Write the report; returns why it cannot be written."""
    try:
        sweepable.finish(planned.folder)
    except UserError as error:
        return str(error)
    return None
