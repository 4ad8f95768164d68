"""Decode one arm into a run directory: what an interrupted session left is kept, and goes on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from specdec.core.errors import Unwritable, UserError
from specdec.core.trace import Trace
from specdec.lab.announcement import announce
from specdec.lab.arm import Arm, build_arm
from specdec.lab.arm_results import hand_to_tracker, provenance_of, summary_of, token_views
from specdec.lab.identity import identity_of
from specdec.lab.interleaving import expect
from specdec.lab.kept_learner import KeptLearner
from specdec.lab.plain_clock import PlainClock
from specdec.lab.shortfall import Shortfall
from specdec.lab.spec import ArmSpec
from specdec.metrics import Tally
from specdec.metrics.speed import eaten
from specdec.prompts import Prompt
from specdec.report.cells import one_line
from specdec.report.table import ArmRow, print_table
from specdec.results.peak_memory import PeakMemory
from specdec.results.processes import Processes
from specdec.results.progress import Progress
from specdec.results.provenance import of_other_code
from specdec.results.run_dir import RunDir, read_clock, read_traces
from specdec.results.trace_file import TraceFile, trace_file
from specdec.runtime.preparation import prepared_seconds


def decode_into(
    spec: ArmSpec, folder: Path, prepare: Callable[[], None] | None = None
) -> float | None:
    """Decode into a run directory unless that was done; returns block efficiency.

    What a run needs beforehand is made by `prepare`, while its folder is locked and called started.

    Raises:
        UserError: the folder holds a run of other options, or a prompt cannot be decoded.
    """
    processes = Processes(spec.device, alike=spec.verifier.get("tp_plan") is not None)
    folder, identity = processes.agreed((folder, identity_of(spec)))
    file = trace_file(folder, processes.rank, identity)
    if not processes.is_main:
        if processes.agreed(None) is None:
            _decode(spec, file, processes)
        return None
    in_sweep = spec.sweep.is_one_of_many
    summary = None
    with RunDir(folder, spec.options, identity, spec.resume, in_sweep) as run_dir:
        if processes.agreed(run_dir.taken) is None:
            if prepare is not None:
                run_dir.start()
                prepare()
            summary = _decode(spec, file, processes, run_dir)
        elif not in_sweep:
            _say_taken(run_dir)
    if summary is None:
        return None
    if in_sweep:
        tau = one_line(summary["block_efficiency"])
        print(f"{spec.sweep.progress(folder)}  {folder.name}: tau {tau}")
    return summary["block_efficiency"]["value"]


def _say_taken(run_dir: RunDir) -> None:
    print(f"{run_dir.path}: {run_dir.taken}; resume=false decodes it again")
    other_code = of_other_code([run_dir.path])
    if other_code is not None:
        print(other_code)


def _decode(
    spec: ArmSpec, file: TraceFile, processes: Processes, run_dir: RunDir | None = None
) -> dict[str, Any] | None:
    """Decode this process's share of what an earlier session has not; return the summary of all.

    Only the main process has a `run_dir`, and a summary.

    Raises:
        UserError: another process failed.
    """
    with processes.together():
        if spec.online is not None and processes.number > 1:
            raise UserError(f"online={spec.online.name}: learns in one process; these are more")
        prompts: Sequence[Prompt] = spec.prompts.load()
        arm = build_arm(spec, spec.verifier.build_shared())
        prompts = arm.choose(prompts)
        expect([arm], prompts)
    if not spec.sweep.is_one_of_many:
        announce([spec], arm, prompts)
    num_turns = {prompt.key: prompt.num_turns for prompt in prompts}
    kept: Sequence[Trace] = ()
    learner: KeptLearner | None = None
    if run_dir is not None:
        learner = KeptLearner.of(spec, arm, run_dir.path, file.identity)
        begin = run_dir.begin if learner is None else partial(learner.begin, run_dir)
        kept = begin(provenance_of(spec, arm.verifier), num_turns)
    done = processes.agreed({trace.prompt_key for trace in kept})
    share = processes.share([prompt for prompt in prompts if prompt.key not in done])
    memory, prepared = PeakMemory(arm.verifier.device), prepared_seconds()
    try:
        with processes.together():
            _decode_share(arm, prompts, share, file, processes, learner)
    except BaseException as error:
        if run_dir is not None:
            with suppress(Unwritable, BrokenPipeError):  # which may be what ended it
                _conclude_early(spec, arm, prompts, run_dir, _used(memory, prepared), error)
        raise
    if run_dir is None:
        return None
    used = _used(memory, prepared)
    return _conclude(spec, arm, prompts, run_dir.unite(num_turns), run_dir, used)


def _used(memory: PeakMemory, prepared: float) -> dict[str, float]:
    """Say what this process took beside the seconds of steps, since `prepared` seconds."""
    compiling = prepared_seconds() - prepared
    return {"peak_memory_bytes": memory.num_bytes, "compile_seconds": round(compiling, 3)}


def _decode_share(
    arm: Arm,
    prompts: Sequence[Prompt],
    share: Sequence[Prompt],
    file: TraceFile,
    processes: Processes,
    learner: KeptLearner | None,
) -> None:
    """Decode some of the prompts, each of them to a line of a file as soon as it is there.

    Between them plain steps are timed, to the file's clock.
    """
    if not share:
        return
    clock = PlainClock(arm, processes.same)
    clock.warm_up(prompts[0])
    arm.warm_up(prompts[0])
    turns = sum(prompt.num_turns for prompt in share)
    with Progress(turns, arm.name, "text") as bar:
        for start in range(0, len(share), arm.turn_size):
            some = share[start : start + arm.turn_size]
            traces: list[Trace] = []
            for trace in arm.decode(some, arm.looked_at(prompts)):
                if processes.writes:
                    file.append(trace)
                traces.append(trace)
                bar.update()
            _require_same(traces, processes)
            for plain in clock.beside(some, traces):
                if processes.writes:
                    file.clock.append(plain)
            if learner is not None:
                learner.saw(some)
    if learner is not None:
        learner.keep()


def _require_same(traces: Sequence[Trace], processes: Processes) -> None:
    """Make sure that processes which run parts of one model wrote the same."""
    written = [trace.output_ids for trace in traces]
    assert processes.same(written) == written, "the processes wrote unlike texts"


def _conclude_early(
    spec: ArmSpec,
    arm: Arm,
    prompts: Sequence[Prompt],
    run_dir: RunDir,
    used: Mapping[str, float],
    error: BaseException,
) -> None:
    """Write and show what there is when decoding ends too soon."""
    traces = read_traces(run_dir.path)
    if isinstance(error, KeyboardInterrupt):
        number = f"{len(traces)} of {sum(prompt.num_turns for prompt in prompts)} texts"
        print(f"interrupted after {number}; the same command goes on")
    if traces:
        _conclude(spec, arm, prompts, traces, run_dir, used)


def _conclude(
    spec: ArmSpec,
    arm: Arm,
    prompts: Sequence[Prompt],
    traces: Sequence[Trace],
    run_dir: RunDir,
    used: Mapping[str, float],
) -> dict[str, Any]:
    """Write and show what the traces come to."""
    tally = Tally.of(traces, read_clock(run_dir.path))
    shortfall = Shortfall.of(arm, prompts, traces)
    summary = {**summary_of(arm, tally), **shortfall.counts(), **used}
    run_dir.show_tokens(token_views(arm, prompts, traces))
    run_dir.summarize(summary, tally)
    hand_to_tracker(spec, run_dir.path, summary, tally)
    if not spec.sweep.is_one_of_many:
        title = f"{tally.num_prompts} prompts, {arm.verifier.precision}, {arm.verifier.runtime}"
        print_table([ArmRow(arm.name, arm.rule, summary)], title)
        print("".join(f"{line}\n" for line in shortfall.lines()), end="")
        if warning := eaten(tally):
            print(warning)
        print(f"run directory: {run_dir.path}")
    return summary
