"""Which configurations of a grid can be replayed from a recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.command.compose import compose_decode
from specdec.core.errors import Unfit, UserError
from specdec.core.plug_ins import is_ours, plug_in_name
from specdec.lab.build import build
from specdec.lab.compatibility import draw_of, require_parts_fit
from specdec.lab.identity import name_of
from specdec.lab.inputs import require_models
from specdec.replay.arm import ClosedArm
from specdec.replay.redraft import require_jumps
from specdec.tree.fixed import FixedTree

# What is told by the recording: whoever wants another writes another one.
RECORDED = ("verifier", "prompts", "sampling")
RECORDED_VALUES = (
    *("max_new_tokens", "min_new_tokens", "stop_strings", "ignore_eos"),
    *("dtype", "attention", "seed"),
)
# The options that the lists of a grid stand for; the others are plug-ins.
GRID = {"gamma": "tree.gamma", "num_nodes": "tree.num_nodes", "temperature": "proposer.temperature"}
PLUG_INS = ("proposer", "tree", "verification")
KEYS = (*PLUG_INS, *GRID.values())


@dataclass(frozen=True)
class Planned:
    """The configurations to replay, by the name of their folder, and why others are not."""

    arms: Mapping[str, DictConfig]
    unfit: Mapping[str, int]


def plan(config: DictConfig, recorded: DictConfig) -> Planned:
    """Compose every configuration that is asked for; those that cannot be are left out."""
    arms: dict[str, DictConfig] = {}
    unfit: dict[str, int] = {}
    shared = [str(option) for option in config.options]
    told = [*combinations(config.grid, shared), *((str(arm).split(), {}) for arm in config.arms)]
    if config.costs is not None:  # speed is compared with decoding without drafts
        told.append((["proposer=none"], {}))
    for overrides, numbers in told:
        arm = arm_config([*shared, *overrides], numbers, recorded)
        try:
            require_parts_fit(arm)
            require_models(arm)
            require_replayable(arm)
        except Unfit as reason:
            unfit[str(reason)] = unfit.get(str(reason), 0) + 1
        else:
            swept = [text.split("=")[0] for text in overrides]
            arms.setdefault(name_of(arm, [*KEYS, *swept]), arm)
    if not arms:
        raise UserError(f"nothing to replay: {'; '.join(unfit) or 'grid and arms are empty'}")
    return Planned(arms, unfit)


def combinations(
    grid: DictConfig, shared: Sequence[str]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield every combination: plug-ins as overrides, and the numbers that these plug-ins have."""
    for values in product(*(grid[name] for name in PLUG_INS)):
        chosen = [f"{name}={value}" for name, value in zip(PLUG_INS, values, strict=True)]
        composed = compose_decode([*shared, *chosen])
        known = {n: o for n, o in GRID.items() if _has(composed, o) and values[0] != "none"}
        for numbers in product(*(grid[name] for name in known)):
            yield chosen, dict(zip(known.values(), numbers, strict=True))


def _has(config: DictConfig, option: str) -> bool:
    node, _, name = option.rpartition(".")
    return name in list(config[node])


def arm_config(
    overrides: Sequence[str], numbers: Mapping[str, Any], recorded: DictConfig
) -> DictConfig:
    """Compose one configuration of `decode`, with everything that the recording decides."""
    for text in overrides:
        name = text.split("=")[0]
        if name.split(".")[0] in (*RECORDED, *RECORDED_VALUES):
            raise UserError(f"{text}: told by the recording; expected another recording")
    found = compose_decode(overrides)
    for option, number in numbers.items():
        OmegaConf.update(found, option, number)
    for name in RECORDED:
        found[name] = OmegaConf.to_container(recorded[name], resolve=True)
    for name in (*RECORDED_VALUES, "device"):
        found[name] = recorded[name]
    return found


def require_replayable(arm: DictConfig) -> None:
    """Refuse what no text decides.

    Raises:
        Unfit: neither a closed form is known, nor does the text decide what is accepted.
    """
    if arm.verification.allow_lossy:
        raise Unfit("verification.allow_lossy=true: texts of lossy rules are others; decode them")
    if closed_arm(arm) is None:
        require_jumps(build(arm.verification.rule), draw_of(arm.proposer, build(arm.tree)))


def rule_of(arm: DictConfig) -> str:
    """Return the name of an arm's rule if it is one of ours; of others the class."""
    return plug_in_name(arm.verification.rule._target_)


def closed_arm(arm: DictConfig) -> Any:
    """Return the arm as a closed form, or None where there is none for it."""
    proposer, tree = arm.proposer, build(arm.tree)
    # What somebody else's proposer makes of a model is not known.
    has_laws = is_ours(proposer._target_) and ("verifier" in proposer or "model" in proposer)
    if not has_laws or not isinstance(tree, FixedTree):
        return None
    try:
        return ClosedArm(tree, build(arm.verification.rule), proposer.temperature)
    except Unfit:
        return None
