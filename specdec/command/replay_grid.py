"""Which configurations of a grid can be replayed from a recording."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.command.compose import compose_decode
from specdec.command.options import arm_spec, declared
from specdec.core.errors import Unfit, UserError
from specdec.core.values import CandidateSource
from specdec.lab.compatibility import require_parts_fit
from specdec.lab.identity import name_of
from specdec.lab.inputs import require_models
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.spec import GROWING, ArmSpec

# Options that the recording fixes: whoever wants others makes another one.
RECORDED = ("verifier", "prompts", "sampling")
RECORDED_VALUES = (
    *("max_new_tokens", "min_new_tokens", "stop_strings", "ignore_eos"),
    *("dtype", "attention", "runtime", "seed"),
)
# The options that the lists of a grid stand for; the others are plug-ins.
GRID = {"gamma": "tree.gamma", "num_nodes": "tree.num_nodes", "temperature": "proposer.temperature"}
PLUG_INS = ("proposer", "tree", "verification")
KEYS = (*PLUG_INS, *GRID.values())


@dataclass(frozen=True)
class Planned:
    """The configurations to replay, by the name of their folder, and why others are not."""

    configs: Mapping[str, DictConfig]
    specs: Mapping[str, ArmSpec]
    arms: Mapping[str, ReplayArm]
    unfit: Mapping[str, int]


def plan(config: DictConfig, recorded: Mapping[str, Any]) -> Planned:
    """Compose every configuration that is asked for; those that cannot be are left out."""
    configs: dict[str, DictConfig] = {}
    specs: dict[str, ArmSpec] = {}
    arms: dict[str, ReplayArm] = {}
    unfit: dict[str, int] = {}
    shared = [str(option) for option in config.options]
    choices = [*combinations(config.grid, shared), *((str(arm).split(), {}) for arm in config.arms)]
    if config.costs is not None:  # speed is compared with decoding without drafts
        choices.append((["proposer=none"], {}))
    for overrides, numbers in choices:
        composed = arm_config([*shared, *overrides], numbers, recorded)
        try:
            spec = arm_spec(composed)
            require_parts_fit(spec)
            require_models(spec)
            arm = ReplayArm.of(spec, config.costs is not None)
        except Unfit as reason:
            unfit[str(reason)] = unfit.get(str(reason), 0) + 1
        else:
            swept = [text.split("=")[0] for text in overrides]
            name = name_of(spec, [*KEYS, *swept])
            configs.setdefault(name, composed)
            specs.setdefault(name, spec)
            arms.setdefault(name, arm)
    if not arms:
        raise UserError(f"nothing to replay: {'; '.join(unfit) or 'grid and arms are empty'}")
    return Planned(configs, specs, arms, unfit)


def combinations(
    grid: DictConfig, shared: Sequence[str]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield every combination: plug-ins as overrides, and the numbers that these plug-ins have."""
    for values in product(*(grid[name] for name in PLUG_INS)):
        chosen = [f"{name}={value}" for name, value in zip(PLUG_INS, values, strict=True)]
        composed = compose_decode([*shared, *chosen])
        known = {name: GRID[name] for name in _numbers(composed)}
        for numbers in product(*(grid[name] for name in known)):
            yield chosen, dict(zip(known.values(), numbers, strict=True))


def _numbers(config: DictConfig) -> Iterator[str]:
    """Yield the lists of the grid that a configuration has options for."""
    source = declared(config.proposer)
    if source is not CandidateSource.NOTHING:
        yield from (name for name in ("gamma", "num_nodes") if name in list(config.tree))
    if source in GROWING:
        yield "temperature"


def arm_config(
    overrides: Sequence[str], numbers: Mapping[str, Any], recorded: Mapping[str, Any]
) -> DictConfig:
    """Compose one configuration of `decode`, with everything that the recording decides."""
    for text in overrides:
        name = text.split("=")[0]
        if name.split(".")[0] in (*RECORDED, *RECORDED_VALUES):
            raise UserError(f"{text}: fixed by the recording; expected another recording")
    found = compose_decode(overrides)
    for option, number in numbers.items():
        OmegaConf.update(found, option, number)
    for name in (*RECORDED, *RECORDED_VALUES, "device"):
        found[name] = recorded[name]
    return found


def noisy_again(configs: Mapping[str, DictConfig], name: str, number: int) -> ArmSpec:
    """Return an arm as one of `number` jobs, with other noise than that of the recorded texts."""
    found = deepcopy(configs[name])
    found.seed = found.seed + 1
    found.resume = True
    found.sweep.missing, found.sweep.started = number, time.time()
    return arm_spec(found)
