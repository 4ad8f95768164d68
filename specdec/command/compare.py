"""Compare proposers, trees and rules on the same prompts, interleaved, with intervals."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from specdec.command.compose import compose
from specdec.command.entry import Entry
from specdec.command.mistakes import require_known
from specdec.core.errors import UserError, require, require_int
from specdec.core.trace import Trace
from specdec.lab import arm as arms
from specdec.lab.arm import Arm, looked_at
from specdec.lab.build import build
from specdec.lab.identity import identity_of
from specdec.lab.inputs import require_inputs
from specdec.lab.paired_results import paired_tallies, paired_traces, summarize_paired
from specdec.lab.prompt_options import build_prompts
from specdec.lab.replay import forecast as beforehand
from specdec.lab.shortfall import Shortfall, counted
from specdec.prompts import Prompt
from specdec.report.table import Row, print_table
from specdec.report.write import write_report
from specdec.results.progress import Progress
from specdec.results.run_dir import RunDir

BASELINE = "proposer=none"
SHARED = (  # the same in all arms
    *("verifier", "prompts", "sampling", "dtype", "device"),
    *("max_new_tokens", "min_new_tokens", "stop_strings", "ignore_eos"),
)
LONGEST_NAME = 80


def task(config: DictConfig) -> None:
    """Decode every prompt with every arm, write one run directory each, and report them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("compare times arms against each other, in one process; decode takes more")
    folder = Path(HydraConfig.get().runtime.output_dir)
    configs = arm_configs(config.arms)
    reference = reference_arm(config.reference, list(configs))
    check_options(config, configs)
    size = arms.turn_size(config.batch) if config.turn is None else config.turn
    prompts = build_prompts(config)
    verifier = build(config.verifier)
    if config.recording is not None:
        beforehand.foresee(configs, config, verifier)
        if config.dry_run:
            return
    competing = [arms.build_arm(each, verifier, name) for name, each in configs.items()]
    prompts = competing[0].choose(prompts)
    for arm in competing:
        arm.skipped = competing[0].skipped
    arms.announce(competing, prompts)
    compete(competing, prompts, folder, size, reference)


def compete(
    competing: Sequence[Arm],
    prompts: Sequence[Prompt],
    folder: Path,
    size: int,
    reference: str | None,
) -> None:
    """Let the arms decode in turns, and write and print what came of it, also if interrupted."""
    traces: dict[str, list[Trace]] = {arm.name: [] for arm in competing}
    summaries: dict[str, dict[str, Any]] = {}
    cut_short: KeyboardInterrupt | UserError | None = None
    with ExitStack() as stack:
        # What is pushed first is done last: the report tells what runs have come to in the end.
        stack.callback(write_page, folder, reference, summaries)
        run_dirs = {arm.name: entered(stack, arm, folder) for arm in competing}
        for arm in competing:
            facts = {**arm.provenance(), "compared": list(run_dirs)}
            run_dirs[arm.name].begin(facts, {})
        try:
            for arm, trace in interleave(competing, prompts, size):
                traces[arm.name].append(trace)
                run_dirs[arm.name].append(trace)
        except (KeyboardInterrupt, UserError) as error:
            cut_short = error
        paired = paired_traces(traces)
        tallies, clock = paired_tallies(competing, paired)
        summaries |= summarize_paired(competing, paired, tallies, reference)
        short = {arm.name: Shortfall.of(arm, prompts, paired[arm.name]) for arm in competing}
        for name, summary in summaries.items():
            summary |= short[name].counts()
        for arm in competing if summaries else ():
            run_dirs[arm.name].keep_clock(clock)
            run_dirs[arm.name].show_tokens(arm.token_views(prompts, traces[arm.name]))
            run_dirs[arm.name].summarize(summaries[arm.name], tallies[arm.name])
            arm.track(run_dirs[arm.name].path, summaries[arm.name], tallies[arm.name])
        done = min(summary["num_prompts"] for summary in summaries.values()) if summaries else 0
        if summaries:
            rows = [Row(arm.name, arm.rule, summaries[arm.name]) for arm in competing]
            temperature = competing[0].config.sampling.temperature
            print_table(rows, f"{done} prompts, temperature {temperature:g}")
            print("".join(f"{line}\n" for line in counted(short)), end="")
        for name, run_dir in run_dirs.items():
            print(f"run directory of {name}: {run_dir.path}")
        if cut_short is not None:
            number = len({prompt.prompt_id for prompt in prompts})
            print(f"interrupted after {done} of {number} prompts; the results above are valid")
            raise cut_short


def check_options(config: DictConfig, configs: Mapping[str, DictConfig]) -> None:
    """Refuse what is wrong before a model is loaded."""
    for each in configs.values():
        arms.check_options(each)
        require_inputs(each)
    beforehand.check_options(config)
    if config.turn is not None:
        require_int("turn", config.turn, 1)


def entered(stack: ExitStack, arm: Arm, folder: Path) -> RunDir:
    """Take hold of an arm's run directory; arms are measured together or not at all."""
    path = folder / arm.name
    run_dir = stack.enter_context(
        RunDir(path, arm.config, identity_of(arm.config), arm.config.resume)
    )
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


def names(arms: Sequence[str]) -> list[str]:
    """Name each arm by its overrides, leaving out those that all arms but the baseline share.

    Nothing is left out where an arm would be left without a name. Arms of one name are numbered.
    """
    overrides = [[text for text in split(arm) if not unnamed(text)] for arm in arms]
    drafting = [each for each in overrides if BASELINE not in each]
    shared = set(drafting[0]).intersection(*drafting) if drafting else set[str]()
    if any(set(each) <= shared for each in overrides):
        shared = set()
    short = [path_safe([text for text in each if text not in shared]) for each in overrides]
    before = [short[:number].count(name) for number, name in enumerate(short)]
    return [
        f"{name}+{count + 1}" if count else name for name, count in zip(short, before, strict=True)
    ]


def split(arm: str) -> list[str]:
    """Cut an arm into its overrides, as a shell would."""
    try:
        return shlex.split(arm)
    except ValueError as error:
        raise UserError(f"arms: {arm!r}: {str(error).lower()}") from None


def unnamed(override: str) -> bool:
    """Whether an override says nothing that an arm is known by."""
    return override.startswith(("judges=", "verification.allow_lossy="))


def path_safe(overrides: Sequence[str]) -> str:
    """Join overrides to a name that is fit for a folder: [2,1] becomes 2-1; what is long is cut."""
    short = [re.sub(r"^(proposer|tree|verification)=", "", text) for text in overrides]
    plain = [re.sub(r"[][\s]", "", text.replace(",", "-")) for text in short]
    return re.sub(r"[^\w.,=+-]", "_", ",".join(plain))[:LONGEST_NAME] or "default"


def reference_arm(reference: object, names: Sequence[str]) -> str | None:
    """Return the name of the arm that is called `reference`, or has that number."""
    if reference is None or (isinstance(reference, str) and reference in names):
        return reference
    numbers = range(len(names))
    if type(reference) is int and reference in numbers:
        return names[reference]
    expected = f"a number from 0 to {numbers[-1]}, or one of {', '.join(names)}"
    raise UserError(f"reference={reference!r}: expected {expected}")


def interleave(
    competing: Sequence[Arm], prompts: Sequence[Prompt], size: int
) -> Iterator[tuple[Arm, Trace]]:
    """Let all arms decode the same few prompts, then the next few; another arm begins each time.

    So a machine that slows down or speeds up does so for every arm.
    """
    shown = looked_at(competing[0].config, prompts)
    for arm in competing:
        arm.warm_up(prompts[0])
    turns = sum(prompt.num_turns for prompt in prompts)
    with Progress(turns * len(competing), "decode", "text") as bar:
        for number, start in enumerate(range(0, len(prompts), size)):
            first = number % len(competing)
            for arm in [*competing[first:], *competing[:first]]:
                bar.on(arm.name)
                for trace in arm.decode(prompts[start : start + size], shown):
                    bar.update()
                    yield arm, trace


def write_page(folder: Path, reference: str | None, summaries: Mapping[str, Any]) -> None:
    """Write the report of a comparison that has any results."""
    if not summaries:
        return
    write_report(folder, reference)
    print(f"report: {folder / 'report.html'}; compute with summary.csv or .parquet beside it")


ENTRY = Entry(task)
