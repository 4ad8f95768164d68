"""Compare proposers, trees and rules on the same prompts, interleaved, with intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from specdec.command.arm_names import names, split
from specdec.command.compose import compose
from specdec.command.entry import Entry
from specdec.command.mistakes import require_known
from specdec.command.options import arm_spec
from specdec.core.errors import UserError, require, require_int
from specdec.core.trace import Trace
from specdec.lab.announcement import announce
from specdec.lab.arm import Arm, build_arm
from specdec.lab.arm_results import hand_to_tracker, provenance_of, token_views
from specdec.lab.checks import check_arm
from specdec.lab.identity import identity_of
from specdec.lab.interleaving import Comparison, compete, expect
from specdec.lab.kept_learner import KeptLearner
from specdec.lab.replay.forecast import foresee
from specdec.lab.shortfall import counted
from specdec.lab.spec import ArmSpec
from specdec.metrics.speed import eaten
from specdec.prompts import Prompt
from specdec.report.table import ArmRow, print_table
from specdec.report.write import write_report
from specdec.results.run_dir import RunDir

SHARED = (  # the same in all arms
    *("verifier", "prompts", "sampling", "dtype", "device"),
    *("max_new_tokens", "min_new_tokens", "stop_strings", "ignore_eos"),
    "experts",  # counting takes time
)


def task(config: DictConfig) -> None:
    """Decode every prompt with every arm, write one run directory each, and report them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("compare times arms against each other, in one process; decode takes more")
    folder = Path(HydraConfig.get().runtime.output_dir)
    specs = {name: arm_spec(each) for name, each in arm_configs(config.arms).items()}
    reference = reference_arm(config.reference, list(specs))
    check_options(config, specs)
    shared = next(iter(specs.values()))
    prompts: Sequence[Prompt] = shared.prompts.load()
    verifier = shared.verifier.build()
    if config.recording is not None:
        foresee(specs, Path(config.recording), config.costs, verifier)
        if config.dry_run:
            return
    arms = [build_arm(spec, verifier, name) for name, spec in specs.items()]
    prompts = arms[0].choose(prompts)
    for arm in arms:
        arm.skipped = arms[0].skipped
    expect(arms, prompts)
    announce(list(specs.values()), arms[0], prompts)
    size = max(arm.turn_size for arm in arms) if config.turn is None else config.turn
    _compete(specs, arms, prompts, folder, size, reference)


def check_options(config: DictConfig, specs: Mapping[str, ArmSpec]) -> None:
    """Refuse what is wrong before a model is loaded."""
    for spec in specs.values():
        check_arm(spec)
    recording, costs = config.recording, config.costs
    good = recording is None or isinstance(recording, str)
    require(good, "recording", recording, "a folder that specdec-record wrote")
    require(costs is None or isinstance(costs, str), "costs", costs, "a file of specdec-costs")
    if costs is not None and recording is None:
        raise UserError(
            f"costs={costs!r}: expected recording=DIR, too: what steps are to be costed"
        )
    require(isinstance(config.dry_run, bool), "dry_run", config.dry_run, "true or false")
    if config.dry_run and recording is None:
        raise UserError("dry_run=true: expected recording=DIR, by which arms are judged")
    if config.turn is not None:
        require_int("turn", config.turn, 1)


def _compete(
    specs: Mapping[str, ArmSpec],
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    folder: Path,
    size: int,
    reference: str | None,
) -> None:
    """Let the arms decode in turns, and write and print what came of it, also if interrupted."""
    summaries: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        # What is pushed first is done last: the report tells what runs have come to in the end.
        stack.callback(write_page, folder, reference, summaries)
        run_dirs = {name: entered(stack, folder / name, spec) for name, spec in specs.items()}
        for arm in arms:
            found = provenance_of(specs[arm.name], arm.verifier)
            run_dirs[arm.name].begin({**found, "compared": list(run_dirs)}, {})

        def keep(arm: Arm, trace: Trace) -> None:
            run_dirs[arm.name].append(trace)

        came_of_it = compete(arms, prompts, size, reference, keep)
        summaries |= came_of_it.summaries
        if summaries:
            _write(came_of_it, specs, prompts, run_dirs)
            _show(came_of_it)
        for name, run_dir in run_dirs.items():
            print(f"run directory of {name}: {run_dir.path}")
        if came_of_it.cut_short is not None:
            done = f"{came_of_it.num_done} of {came_of_it.num_prompts} prompts"
            print(f"interrupted after {done}; the results above are valid")
            raise came_of_it.cut_short


def _write(
    came_of_it: Comparison,
    specs: Mapping[str, ArmSpec],
    prompts: Sequence[Prompt],
    run_dirs: Mapping[str, RunDir],
) -> None:
    for arm in came_of_it.arms:
        run_dir, name = run_dirs[arm.name], arm.name
        summary, tally = came_of_it.summaries[name], came_of_it.tallies[name]
        run_dir.keep_clock(came_of_it.clock)
        run_dir.show_tokens(token_views(arm, prompts, came_of_it.traces[name]))
        run_dir.summarize(summary, tally)
        learner = KeptLearner.of(specs[name], arm, run_dir.path, identity_of(specs[name]))
        if learner is not None and came_of_it.cut_short is None:
            learner.saw(prompts)
            learner.keep()
        hand_to_tracker(specs[name], run_dir.path, summary, tally)


def _show(came_of_it: Comparison) -> None:
    rows = [ArmRow(arm.name, arm.rule, came_of_it.summaries[arm.name]) for arm in came_of_it.arms]
    temperature = came_of_it.arms[0].decoder.sampling.temperature
    verifier = came_of_it.arms[0].verifier
    how = f"temperature {temperature:g}, {verifier.precision}, {verifier.runtime}"
    print_table(rows, f"{came_of_it.num_done} prompts, {how}")
    print("".join(f"{line}\n" for line in counted(came_of_it.shortfalls)), end="")
    for name, tally in came_of_it.tallies.items():
        if warning := eaten(tally):
            print(f"{name}: {warning}")


def entered(stack: ExitStack, path: Path, spec: ArmSpec) -> RunDir:
    """Take hold of an arm's run directory; arms are measured together or not at all."""
    run_dir = stack.enter_context(RunDir(path, spec.options, identity_of(spec), spec.resume))
    if run_dir.taken is not None:
        raise UserError(
            f"{path}: {run_dir.taken}; expected another folder, output=DIR, or resume=false"
            " to decode all arms again"
        )
    return run_dir


def arm_configs(arms: ListConfig) -> dict[str, DictConfig]:
    """Compose one configuration per arm: the command line's overrides, then the arm's."""
    is_list = isinstance(arms, ListConfig) and len(arms) > 0
    require(
        is_list,
        "arms",
        arms,
        'a list with at least one string of overrides, ["proposer=none","proposer=ngram"]',
    )
    common = [text for text in HydraConfig.get().overrides.task if not text.startswith("arms=")]
    for text in common:
        if text.startswith(("proposer=", "proposer.")):
            raise UserError(f'{text}: every arm has its own proposer; expected arms=["{text}"]')
    for arm in arms:
        require(isinstance(arm, str), "arms", arm, "a string of overrides, proposer=ngram")
        if sum(split(arm) == split(other) for other in arms if isinstance(other, str)) > 1:
            raise UserError(f"arms: {arm!r} is there twice")
        require_known("compare", [*common, *split(arm)])
    configs = {
        name: compose("compare", [*common, *split(arm)])
        for arm, name in zip(arms, names(arms), strict=True)
    }
    first = next(iter(configs.values()))
    for arm, each in zip(arms, configs.values(), strict=True):
        for field in SHARED:
            same = each[field] == first[field]
            require(same, "arms", arm, f"the same {field} in every arm; set it outside of them")
    return configs


def reference_arm(reference: object, names: Sequence[str]) -> str | None:
    """Return the name of the arm that is called `reference`, or has that number."""
    if reference is None or (isinstance(reference, str) and reference in names):
        return reference
    numbers = range(len(names))
    if type(reference) is int and reference in numbers:
        return names[reference]
    expected = f"a number from 0 to {numbers[-1]}, or one of {', '.join(names)}"
    raise UserError(f"reference={reference!r}: expected {expected}")


def write_page(folder: Path, reference: str | None, summaries: Mapping[str, Any]) -> None:
    """Write the report of a comparison that has any results."""
    if not summaries:
        return
    write_report(folder, reference)
    print(f"report: {folder / 'report.html'}; compute with summary.csv or .parquet beside it")


ENTRY = Entry(task)
