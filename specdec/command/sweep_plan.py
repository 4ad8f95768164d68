"""What a sweep consists of: experiments, their combinations of options, and jobs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hydra

# How several values become combinations is told by nothing public: a sweeper only runs them.
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from specdec.command.chosen_experiment import require_own
from specdec.command.compose import compose
from specdec.command.entry import Sweepable
from specdec.core.errors import Unfit, UserError, require
from specdec.results.run_dir import state_of


@dataclass
class Plan:
    """The jobs of a sweep, each run once, however many combinations of options come to it."""

    root: DictConfig  # the configuration that all jobs have in common, with Hydra's own node
    over: list[str]  # the options that are swept
    jobs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # overrides, by name
    unfit: dict[str, int] = field(default_factory=dict[str, int])  # reasons: how many combinations
    num_combinations: int = 0

    @property
    def folder(self) -> Path:
        """Where the runs go."""
        return Path(self.root.hydra.sweep.dir)

    def states(self) -> dict[str, str]:
        """Return the state of each job's run as its folder has it, `new` where there is none."""
        return {name: state_of(self.folder / name) for name in self.jobs}


@dataclass(frozen=True)
class Study:
    """One experiment of a sweep, or all that there is: its options, and what it sweeps."""

    root: DictConfig  # the configuration that its jobs have in common, with Hydra's own node
    swept: dict[str, bool]  # every option that is given, and whether it has several values
    combinations: list[list[str]]

    @classmethod
    def of(cls, config_name: str, given: list[str], parser: OverridesParser) -> Study:
        """Compose what does not vary, and take every combination of what does."""
        fixed = [text for text in given if not _is_swept(parser, text)]
        root = hydra.compose(config_name, fixed, return_hydra_config=True)
        require_own(root, root.hydra.runtime.choices.get("experiment"), config_name)
        require(
            root.hydra.sweep.dir == root.get("output", root.hydra.sweep.dir),
            "hydra.sweep.dir",
            root.hydra.sweep.dir,
            "output: DIR, which is the word for it",
        )
        params = root.hydra.sweeper.get("params") or {}
        parsed = parser.parse_overrides([*(f"{k}={v}" for k, v in params.items()), *given])
        swept = {each.get_key_element(): each.is_sweep_override() for each in parsed}
        return cls(root, swept, BasicSweeper.split_arguments(parsed, None)[0])


def plan_of(config_name: str, arguments: Namespace, sweepable: Sweepable) -> Plan | None:
    """Compose and check every combination; those that cannot be are left out."""
    # The loader tells which files of a group glob(...) means.
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    experiments = _experiments(list(arguments.overrides), parser)
    studies = [Study.of(config_name, given, parser) for given in experiments]
    sweeps = any(study.root.hydra.mode == RunMode.MULTIRUN for study in studies)
    if not sweeps and not arguments.multirun:
        return None
    over = dict.fromkeys(key for each in studies for key, several in each.swept.items() if several)
    found = Plan(studies[0].root, list(over))
    in_one = _in_one_folder(studies, arguments.overrides)
    combinations = [overrides for study in studies for overrides in study.combinations]
    for overrides in _some(combinations, found.root.sweep.most):
        job = [*overrides, *in_one]
        _add(found, job, compose(config_name, job), sweepable)
    if not found.jobs:
        raise UserError(f"nothing to run: {'; '.join(found.unfit)}")
    return found


def _experiments(given: list[str], parser: OverridesParser) -> list[list[str]]:
    """Split a command line by the experiments it names: each brings options to sweep of its own."""
    for place, text in enumerate(given):
        if text.startswith("experiment=") and _is_swept(parser, text):
            names = parser.parse_override(text).sweep_string_iterator()
            rest = given[:place], given[place + 1 :]
            return [[*rest[0], f"experiment={name}", *rest[1]] for name in names]
    return [given]


def _in_one_folder(studies: Sequence[Study], overrides: Sequence[str]) -> list[str]:
    """Name one folder for all, and the option that says so; each experiment has its own."""
    root = studies[0].root
    if len(studies) == 1 or any(text.startswith("output=") for text in overrides):
        return []
    names = [str(study.root.hydra.runtime.choices["experiment"]) for study in studies]
    root.output = str(Path(root.output).parent / "+".join(names))
    quoted = root.output.replace("'", "\\'")
    return [f"output='{quoted}'"]


def _is_swept(parser: OverridesParser, text: str) -> bool:
    try:
        return parser.parse_override(text).is_sweep_override()
    except HydraException:  # `compose` will say what is wrong with it
        return False


def _some(jobs: list[list[str]], most: int | None) -> list[list[str]]:
    """Spread at most so many over all combinations."""
    return jobs if most is None else jobs[:: -(-len(jobs) // most)]


def _add(found: Plan, overrides: list[str], config: DictConfig, sweepable: Sweepable) -> None:
    found.num_combinations += 1
    try:
        sweepable.check(config)
    except Unfit as reason:
        found.unfit[str(reason)] = found.unfit.get(str(reason), 0) + 1
    else:
        name = sweepable.name(config, found.over)
        found.jobs.setdefault(folder_of(found.folder, name).name, overrides)


def folder_of(folder: Path, name: str) -> Path:
    """Return a run's folder: the one that it has, if another sweep has named it."""
    digits = name.rpartition("-")[2]  # of its identity
    return next(folder.glob(f"*-{digits}"), folder / name)
