"""A job of a sweep over trainings: train, then decode with what was trained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from specdec.experiments.app import build, compose_decode
from specdec.experiments.training import require_data, train_in_sweep

from specdec.core.errors import UserError, require

TRAINED = "trained"  # the folder of what was trained, in the run directory
PROPOSES = {"medusa": "proposer.path", "chained": "proposer.path", "draft_model": "draft.path"}
# What decoding has from training, so that `decode` cannot say otherwise.
SHARED = ("proposer", "verifier", "draft", "tree", "sampling", "dtype", "seed", "tracker")
# What says nothing about the weights that come out, or is told by what decoding shares.
NEUTRAL = {
    *("_target_", "states", "loss", "acceptance", "max_steps", "seed", "tracker", "batch"),
    *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "save_best", "group"),
    *("resume_from_checkpoint", "held_out_path", "eval_samples", "cache_path"),
}


def check(config: DictConfig) -> None:
    """Refuse what cannot be trained or decoded with, before any model is loaded."""
    from specdec.experiments.arm import check_options

    from specdec.proposer.fit import require_levels

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep gives each training one process; see hydra/launcher for several")
    require_data(config)
    require(isinstance(config.decode, ListConfig), "decode", config.decode, "a list of options")
    build(config.trainer)
    if "num_heads" in config.train:
        require_levels(build(config.tree), config.train.num_heads, " (train.num_heads)")
    # A draft will have the verifier's vocabulary; what heads there will be was checked above.
    check_options(decoding(config, config.verifier.path))


def name(config: DictConfig, keys: Sequence[str]) -> str:
    """Name the folder of a run by the options that are swept."""
    from specdec.experiments.naming import name_of

    found = decoding(config, TRAINED)
    own = {"train": "proposer"} | {key: f"training.{key}" for key in found.training}
    return name_of(found, [own.get(key, key) for key in keys])


def decoding(config: DictConfig, trained: str) -> DictConfig:
    """Return the configuration of `decode` with what a training leaves in the folder `trained`."""
    kind = _kind(config)
    for text in config.decode:
        if str(text).lstrip("+~").split("=")[0].split(".")[0] in SHARED:
            raise UserError(f"decode: {text}: decoding shares this with training, {text} alone")
    found = compose_decode([f"proposer={kind}", *map(str, config.decode)])
    OmegaConf.update(found, PROPOSES[kind], trained)
    found.verifier.path = f"{trained}/verifier" if config.joint else config.verifier.path
    for key in ("tree", "sampling", "sweep"):
        found[key] = OmegaConf.to_container(config[key], resolve=True)
    for key in ("dtype", "seed", "tracker", "resume"):
        found[key] = config[key]
    found.training = {"output": trained, **_options(config, kind)}
    return found


def _kind(config: DictConfig) -> str:
    from specdec.report.options import stem_of_target

    kind = stem_of_target(config.train._target_)
    if kind not in PROPOSES:
        raise UserError(f"train={kind}: proposes nothing; a sweep trains {', '.join(PROPOSES)}")
    return kind


def _options(config: DictConfig, kind: str) -> dict[str, Any]:
    """Return what decides on the weights, by option."""
    from specdec.report.options import stem_of_target

    found = {"max_steps": config.trainer.max_steps, "joint": config.joint}
    found |= {"loss": stem_of_target(config.loss._target_)}
    nodes = ["train", "loss", "data", "trainer"]
    nodes += ["distill"] if config.distill.path is not None else []
    nodes += ["tuning"] if config.joint else []
    for node in nodes:
        found |= dict(_plain(node, config[node]))
    if config.joint:
        found["verifier.path"] = config.verifier.path
    return found


def _plain(prefix: str, node: DictConfig) -> Iterator[tuple[str, Any]]:
    for key in node:
        if key not in NEUTRAL and not OmegaConf.is_missing(node, str(key)):
            value = node[key]
            if not isinstance(value, Mapping):
                yield f"{prefix}.{key}", value


def train_and_decode(config: DictConfig, folder: Path) -> float | None:
    """Train into a run directory, go on where that was interrupted, and decode into it."""
    from specdec.experiments.decode import decode_into

    trained = folder / TRAINED
    decoded = decoding(config, str(trained))

    def prepare() -> None:
        if not config.resume:
            shutil.rmtree(trained, ignore_errors=True)
        train_in_sweep(config, trained)

    return decode_into(decoded, folder, prepare)
