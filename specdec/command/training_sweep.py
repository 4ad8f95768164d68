"""A job of a sweep over trainings: train, then decode with what was trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.compose import compose_decode
from specdec.command.decode import decode_into
from specdec.command.mistakes import LISTS, OF_HYDRA, explained, require_known
from specdec.core.errors import Unfit, UserError, require, require_share
from specdec.core.plug_ins import plug_in_name
from specdec.lab.arm import check_options
from specdec.lab.build import build
from specdec.lab.compatibility import name_of_node
from specdec.lab.identity import name_of
from specdec.lab.inputs import require_model, require_prompts
from specdec.lab.option_names import named_options
from specdec.lab.training_run import chosen, require_data, train_in_sweep
from specdec.lm.load import require_loadable
from specdec.proposer.tree_fit import require_levels
from specdec.training.data.text import require_readable
from specdec.training.joint import require_tuning
from specdec.training.tracked_name import IN_SWEEP as TRAINED

NOT_YET = os.path.join(os.devnull, TRAINED)  # where nothing is, for heads to come
PROPOSES = {"medusa": "proposer.path", "chained": "proposer.path", "draft_model": "draft.path"}
# What `decode` cannot say: what decodes is what was trained; decoding has an option from training;
# or it is for the sweep as a whole.
TRAINS = {"proposer", "proposer.path", "proposer.revision", "draft", "draft.path", "draft.revision"}
SHARED = {"verifier", "tree", "sampling", "dtype", "seed", "tracker"}
OF_SWEEP = {"hydra", "output", "resume", "sweep", "dry_run", "training", "experiment", "debug"}
# What of a node says nothing about the weights that come out, or is told by another option.
NEUTRAL = {
    "train": {"states", "loss", "acceptance", "reading"},
    "loss": set[str](),
    "data": {"held_out_path", "held_out_split", "eval_samples", "cache_path", "tokens_path"},
    "trainer": {
        *("max_steps", "logging_steps", "eval_steps", "save_steps", "save_total_limit"),
        "eval_on_start",
        *("save_best", "resume", "resume_from_checkpoint", "tracker", "group", "max_hours"),
    },
    "distill": {"batch"},
    "tuning": {"training"},
}
SEEDED = {"train", "trainer", "tuning"}  # by the seed of the run, unless told otherwise


def check(config: DictConfig) -> None:
    """Refuse what cannot be trained or decoded with, before any model is loaded."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep gives each training one process; see hydra/launcher for several")
    sources = require_data(config)
    _check_training(config)
    # A draft will have the verifier's vocabulary; what heads there will be was checked above.
    drafts = _kind(config) == "draft_model"
    decodes = decoding(config, config.verifier.path if drafts else NOT_YET)
    for name in ("path", "revision"):
        decodes.verifier[name] = config.verifier[name]
    check_options(decodes)
    require_model(config.verifier)
    for source in sources:
        require_readable(source)
    init = config.train.get("init_path")
    if init is not None:
        own = {name: config.train[name] for name in ("revision", "trust_remote_code")}
        require_loadable(init, vocabulary_of=config.verifier, field="train.init_path", **own)
    try:
        require_prompts(decodes)
    except UserError as error:  # training has no prompts
        raise UserError(f"decode: {error}") from None


def _check_training(config: DictConfig) -> None:
    """Build what is cheap to build."""
    kind = _kind(config)
    for node in ("trainer", "distill", "loss"):
        build(config[node])
    build(config.evaluation).prepare()
    with named_options(config.train):
        require_share("share", config.train.share)
    if chosen(config) is config.tuning:
        if kind == "draft_model":
            raise Unfit("joint=true: draft_model has no heads; expected train=medusa or chained")
        plain: Any = OmegaConf.to_container(config.tuning, resolve=True)
        with named_options(config.tuning):
            require_tuning(plain)
    if "num_heads" in config.train:
        require_levels(build(config.tree), config.train.num_heads, " (train.num_heads)")


def name(config: DictConfig, keys: Sequence[str]) -> str:
    """Name the folder of a run by the options that are swept."""
    found = decoding(config, TRAINED)
    own = {"train": "proposer", "trainer.max_steps": "training.max_steps"}
    own |= {key: f"training.{key}" for key in found.training}
    return name_of(found, [own.get(key, key) for key in keys])


def decoding(config: DictConfig, trained: str) -> DictConfig:
    """Return the configuration of `decode` with what a training leaves in the folder `trained`."""
    kind = _kind(config)
    found = _composed(config, kind)
    OmegaConf.update(found, PROPOSES[kind], trained)
    tuned = f"{trained}/verifier"  # which lies here, and so has no revisions
    found.verifier.path = tuned if config.joint else config.verifier.path
    found.verifier.revision = None if config.joint else config.verifier.revision
    found.verifier.trust_remote_code = config.verifier.trust_remote_code
    found.verifier.dtype = config.verifier.dtype
    if config.verifier.attention is not None:  # else `decode` may say
        found.verifier.attention = config.verifier.attention
    for key in ("tree", "sampling", "sweep"):
        found[key] = OmegaConf.to_container(config[key], resolve=True)
    for key in ("dtype", "seed", "tracker", "resume"):
        found[key] = config[key]
    found.choices = {**(found.choices or {}), "tree": name_of_node(config, "tree")}
    found.training = {"output": trained, **_options(config, kind)}
    return found


def _composed(config: DictConfig, kind: str) -> DictConfig:
    """Compose `decode` with what is listed for it; a mistake is answered with its place."""
    listed = config.decode
    texts = isinstance(listed, ListConfig) and all(isinstance(text, str) for text in listed)
    require(texts, "decode", listed, f"a list of options of decode, {LISTS['decode']}")
    choice = f"proposer={kind}"
    for text in listed:
        _require_of_decoding(text)
    try:
        require_known("decode", [choice, *listed])
        return compose_decode([choice, *listed])
    except OF_HYDRA as all_of_them:
        for text in listed:
            try:
                compose_decode([choice, text])
            except OF_HYDRA as error:
                raise _of_decode(text, error, choice) from None
        raise _of_decode(" ".join(listed), all_of_them, choice) from None


def _of_decode(text: str, error: Exception, *overrides: str) -> UserError:
    return UserError(f"decode: {text}: {explained(error, 'decode', [*overrides, text])}")


def _require_of_decoding(text: str) -> None:
    """Refuse what is no override or said elsewhere, and several values for one option."""
    try:
        told = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = f"{_of_decode(text, error)}; expected options in quotes, {LISTS['decode']}"
        raise UserError(reason) from None
    key = told.get_key_element().lstrip("+~")
    node = key.replace("/", ".").split(".")[0]
    if key in TRAINS:
        raise UserError(f"decode: {text}: decodes with what was trained; expected other options")
    if node in SHARED:
        raise UserError(f"decode: {text}: decoding has this from training; expected {text} alone")
    if node in OF_SWEEP:
        raise UserError(f"decode: {text}: is for the sweep as a whole; expected {text} alone")
    if told.is_sweep_override():
        raise UserError(f"decode: {text}: expected one value; give several lists, decode=[..],[..]")


def _kind(config: DictConfig) -> str:
    kind = plug_in_name(config.train._target_)
    if kind not in PROPOSES:
        raise UserError(f"train={kind}: proposes nothing; a sweep trains {', '.join(PROPOSES)}")
    return kind


def _options(config: DictConfig, kind: str) -> dict[str, Any]:
    """Return what decides on the weights, by option."""
    found = {"max_steps": config.trainer.max_steps, "joint": config.joint}
    found |= {"loss": name_of_node(config, "loss")}
    found |= {f"{node}._target_": config[node]._target_ for node in ("train", "loss")}
    nodes = ["train", "loss", "data", "trainer"]
    nodes += ["distill"] if config.distill.path is not None else []
    nodes += ["tuning"] if config.joint else []
    for node in nodes:
        found |= _heeded(config, node)
    if config.joint:
        for name in ("path", "revision"):
            found[f"verifier.{name}"] = config.verifier[name]
    return found


def _heeded(config: DictConfig, node: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config[node], resolve=True)
    left_out = {"_target_", *NEUTRAL[node]}
    if node in SEEDED and plain.get("seed") == config.seed:
        left_out.add("seed")
    return {f"{node}.{key}": value for key, value in plain.items() if key not in left_out}


def train_and_decode(config: DictConfig, folder: Path) -> float | None:
    """Train into a run directory, go on where that was interrupted, and decode into it."""
    trained = folder / TRAINED
    decoded = decoding(config, str(trained))

    def prepare() -> None:
        train_in_sweep(config, trained, sweep=folder.parent.name)

    return decode_into(decoded, folder, prepare)
