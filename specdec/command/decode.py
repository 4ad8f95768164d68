"""Decode a set of prompts with one arm: `python experiments/decode.py proposer=ngram`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from specdec.command.entry import Entry, Sweepable
from specdec.command.report import report
from specdec.command.sweep import in_sweep, progress, run_folder
from specdec.core.errors import Unwritable, UserError
from specdec.core.trace import Trace
from specdec.lab import arm as arms
from specdec.lab.arm import Arm, check_options, looked_at, summary_of, turn_size
from specdec.lab.build import build
from specdec.lab.identity import identity_of, name_of
from specdec.lab.inputs import require_inputs
from specdec.lab.plain_clock import PlainClock
from specdec.lab.prompt_options import build_prompts
from specdec.lab.shortfall import Shortfall
from specdec.metrics import Tally
from specdec.prompts import Prompt
from specdec.report.table import Row, one_line, print_table
from specdec.results.peak_memory import PeakMemory
from specdec.results.processes import Processes
from specdec.results.progress import Progress
from specdec.results.provenance import of_other_code
from specdec.results.run_dir import RunDir, TraceFile, read_clock, read_traces, state_of, trace_file


def task(config: DictConfig) -> float | None:
    """Decode, write the run directory, print a table; returns block efficiency for sweepers."""
    check(config)
    folder = run_folder(config, SWEEPABLE)
    if config.dry_run:
        print(f"one run, {state_of(folder)}: {folder}")
        return None
    return decode_into(config, folder)


def decode_into(
    config: DictConfig, folder: Path, prepare: Callable[[], None] | None = None
) -> float | None:
    """Decode into a run directory unless that was done; returns block efficiency.

    What a run needs beforehand is made by `prepare`, while its folder is locked and called started.
    """
    processes = Processes(config.device)
    folder, identity = processes.agreed((folder, identity_of(config)))
    file = trace_file(folder, processes.rank, identity)
    if not processes.is_main:
        if processes.agreed(None) is None:
            decode(config, file, processes)
        return None
    summary = None
    with RunDir(folder, config, identity, config.resume, in_sweep(config)) as run_dir:
        if processes.agreed(run_dir.taken) is None:
            if prepare is not None:
                run_dir.start()
                prepare()
            summary = decode(config, file, processes, run_dir)
        elif not in_sweep(config):
            print(f"{folder}: {run_dir.taken}; resume=false decodes it again")
            other_code = of_other_code([folder])
            if other_code is not None:
                print(other_code)
    if summary is None:
        return None
    if in_sweep(config):
        tau = one_line(summary["block_efficiency"])
        print(f"{progress(config, folder)}  {folder.name}: tau {tau}")
    return summary["block_efficiency"]["value"]


def check(config: DictConfig) -> None:
    """Refuse what cannot be decoded, before any model is loaded."""
    if "arms" in config:
        raise UserError("arms: this is for several arms; run specdec-compare with the same options")
    check_options(config)
    require_inputs(config)


def name(config: DictConfig, keys: Sequence[str]) -> str:
    """Name the folder of a run by the options that are swept."""
    return name_of(config, keys)


def decode(
    config: DictConfig, file: TraceFile, processes: Processes, run_dir: RunDir | None = None
) -> dict[str, Any] | None:
    """Decode this process's share of what an earlier session has not; return the summary of all.

    Only the main process has a `run_dir`, and a summary.

    Raises:
        UserError: another process failed.
    """
    with processes.together():
        prompts = build_prompts(config)
        arm = arms.build_arm(config, build(config.verifier))
        prompts = arm.choose(prompts)
    if not in_sweep(config):
        arms.announce([arm], prompts)
    num_turns = {prompt.key: prompt.num_turns for prompt in prompts}
    kept = [] if run_dir is None else run_dir.begin(arm.provenance(), num_turns)
    done = processes.agreed({trace.prompt_key for trace in kept})
    share = processes.share([prompt for prompt in prompts if prompt.key not in done])
    memory = PeakMemory(arm.verifier.device)
    try:
        with processes.together():
            _decode_share(arm, prompts, share, file)
    except BaseException as error:
        if run_dir is not None:
            with suppress(Unwritable, BrokenPipeError):  # which may be what ended it
                _conclude_early(arm, prompts, run_dir, memory.num_bytes, error)
        raise
    if run_dir is None:
        return None
    return _conclude(arm, prompts, run_dir.unite(num_turns), run_dir, memory.num_bytes)


def _decode_share(
    arm: Arm, prompts: Sequence[Prompt], share: Sequence[Prompt], file: TraceFile
) -> None:
    """Decode some of the prompts, each of them to a line of a file as soon as it is there.

    Between them plain steps are timed, to the file's clock.
    """
    if not share:
        return
    clock = PlainClock(arm)
    clock.warm_up(prompts[0])
    arm.warm_up(prompts[0])
    turns = sum(prompt.num_turns for prompt in share)
    size = turn_size(arm.config.batch)
    with Progress(turns, arm.name, "text") as bar:
        for start in range(0, len(share), size):
            some = share[start : start + size]
            traces: list[Trace] = []
            for trace in arm.decode(some, looked_at(arm.config, prompts)):
                file.append(trace)
                traces.append(trace)
                bar.update()
            for plain in clock.beside(some, traces):
                file.clock.append(plain)


def _conclude_early(
    arm: Arm,
    prompts: Sequence[Prompt],
    run_dir: RunDir,
    peak_memory_bytes: int,
    error: BaseException,
) -> None:
    """Write and show what there is when decoding ends too soon."""
    traces = read_traces(run_dir.path)
    if isinstance(error, KeyboardInterrupt):
        number = f"{len(traces)} of {sum(prompt.num_turns for prompt in prompts)} texts"
        print(f"interrupted after {number}; the same command goes on")
    if traces:
        _conclude(arm, prompts, traces, run_dir, peak_memory_bytes)


def _conclude(
    arm: Arm,
    prompts: Sequence[Prompt],
    traces: Sequence[Trace],
    run_dir: RunDir,
    peak_memory_bytes: int,
) -> dict[str, Any]:
    """Write and show what the traces come to."""
    tally = Tally.of(traces, read_clock(run_dir.path))
    shortfall = Shortfall.of(arm, prompts, traces)
    summary = {**summary_of(arm, tally), **shortfall.counts()}
    summary["peak_memory_bytes"] = peak_memory_bytes
    run_dir.show_tokens(arm.token_views(prompts, traces))
    run_dir.summarize(summary, tally)
    arm.track(run_dir.path, summary, tally)
    if not in_sweep(arm.config):
        print_table([Row(arm.name, arm.rule, summary)], f"{tally.num_prompts} prompts")
        print("".join(f"{line}\n" for line in shortfall.lines()), end="")
        print(f"run directory: {run_dir.path}")
    return summary


SWEEPABLE = Sweepable(check, name, report)


ENTRY = Entry(task, SWEEPABLE)
