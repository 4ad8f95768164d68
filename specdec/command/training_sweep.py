"""A job of a sweep over trainings: train, then decode with what was trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.compose import compose_decode
from specdec.command.mistakes import LISTS, OF_HYDRA, explained, require_known
from specdec.command.options import arm_spec, training_spec
from specdec.core.errors import Unfit, UserError, require, require_share
from specdec.core.values import CandidateSource
from specdec.lab.checks import check_options
from specdec.lab.decoding import decode_into
from specdec.lab.identity import name_of
from specdec.lab.inputs import require_model, require_prompts
from specdec.lab.option_names import named_options
from specdec.lab.training_run import train_in_sweep
from specdec.lab.training_spec import TrainingSpec
from specdec.lm.loadable import require_loadable
from specdec.proposer.tree_fit import require_levels
from specdec.training.data.text import require_readable
from specdec.training.joint import require_tuning
from specdec.training.tracked_name import IN_SWEEP as TRAINED

NOT_YET = os.path.join(os.devnull, TRAINED)  # where nothing is, for heads to come
# The option that says where the proposer finds what was trained.
PLACES = {
    CandidateSource.HEADS: "proposer.path",
    CandidateSource.VERIFIER: "proposer.path",
    CandidateSource.MODEL: "draft.path",
}
# What `decode` cannot say: what decodes is what was trained; decoding has an option from training;
# or it is for the sweep as a whole.
TRAINS = {"proposer", "proposer.path", "proposer.revision", "draft", "draft.path", "draft.revision"}
SHARED = {"verifier", "tree", "sampling", "dtype", "seed", "tracker"}
OF_SWEEP = {"hydra", "output", "resume", "sweep", "dry_run", "training", "experiment", "debug"}
# What of a node says nothing about the weights that come out, or follows from another option.
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
SEEDED = {"train", "trainer", "tuning"}  # by the seed of the run, unless another is given


def check(config: DictConfig) -> None:
    """Refuse what cannot be trained or decoded with, before any model is loaded."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep gives each training one process; see hydra/launcher for several")
    spec = training_spec(config)
    sources = spec.require_data()
    spec.require_sides(sources)
    _check_training(spec)
    # A draft will have the verifier's vocabulary; what heads there will be was checked above.
    drafts = spec.source is CandidateSource.MODEL
    decodes = decoding(config, spec.verifier.path if drafts else NOT_YET)
    for name in ("path", "revision"):
        decodes.verifier[name] = spec.verifier.get(name)
    arm = arm_spec(decodes)
    check_options(arm)
    require_model(spec.verifier)
    for source in sources:
        require_readable(source)
    given = spec.train.options
    init = given.get("init_path")
    if init is not None:
        own = {name: given[name] for name in ("revision", "trust_remote_code") if name in given}
        verifier = spec.verifier.options
        require_loadable(init, vocabulary_of=verifier, field="train.init_path", **own)
    try:
        require_prompts(arm.prompts, arm.verifier)
    except UserError as error:  # training has no prompts
        raise UserError(f"decode: {error}") from None


def _check_training(spec: TrainingSpec) -> None:
    """Build what is cheap to build."""
    _place(spec)
    for part in (spec.trainer, spec.distill, spec.loss):
        part.build()
    spec.evaluation.build().prepare()
    with named_options(spec.train.names):
        require_share("share", spec.train.get("share"))
    if spec.objective is spec.tuning:
        if spec.source is not CandidateSource.HEADS:
            raise Unfit(
                f"joint=true: {spec.train.name} has no heads; expected train=medusa or chained"
            )
        with named_options(spec.tuning.names):
            require_tuning(spec.tuning.options)
    number = spec.train.get("num_heads")  # there is none where one goes on from its own outputs
    if spec.source is CandidateSource.HEADS and isinstance(number, int):
        require_levels(spec.tree.build(), number, " (train.num_heads)")


def name(config: DictConfig, keys: Sequence[str]) -> str:
    """Name the folder of a run by the options that are swept."""
    found = decoding(config, TRAINED)
    own = {"train": "proposer", "trainer.max_steps": "training.max_steps"}
    own |= {key: f"training.{key}" for key in found.training}
    return name_of(arm_spec(found), [own.get(key, key) for key in keys])


def decoding(config: DictConfig, trained: str) -> DictConfig:
    """Return the configuration of `decode` with what a training leaves in the folder `trained`."""
    spec = training_spec(config)
    place = _place(spec)
    found = _composed(config, spec.proposer_name)
    OmegaConf.update(found, place, trained)
    tuned = f"{trained}/verifier"  # which lies here, and so has no revisions
    found.verifier.path = tuned if spec.joint else spec.verifier.path
    found.verifier.revision = None if spec.joint else spec.verifier.revision
    found.verifier.trust_remote_code = spec.verifier.get("trust_remote_code")
    found.verifier.dtype = spec.verifier.get("dtype")
    if spec.verifier.get("attention") is not None:  # else `decode` may say
        found.verifier.attention = spec.verifier.get("attention")
    for key in ("tree", "sampling", "sweep", "dtype", "seed", "tracker", "resume"):
        found[key] = spec.options[key]
    found.choices = {**(found.choices or {}), "tree": spec.tree.name}
    found.training = {"output": trained, **_options(spec)}
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
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = f"{_of_decode(text, error)}; expected options in quotes, {LISTS['decode']}"
        raise UserError(reason) from None
    key = override.get_key_element().lstrip("+~")
    node = key.replace("/", ".").split(".")[0]
    if key in TRAINS:
        raise UserError(f"decode: {text}: decodes with what was trained; expected other options")
    if node in SHARED:
        raise UserError(f"decode: {text}: decoding has this from training; expected {text} alone")
    if node in OF_SWEEP:
        raise UserError(f"decode: {text}: is for the sweep as a whole; expected {text} alone")
    if override.is_sweep_override():
        raise UserError(f"decode: {text}: expected one value; give several lists, decode=[..],[..]")


def _place(spec: TrainingSpec) -> str:
    """Return the option that says where the proposer finds what was trained.

    Raises:
        UserError: nothing proposes with it.
    """
    place = None if spec.source is None else PLACES.get(spec.source)
    if place is None:
        expected = "medusa, chained, eagle, mtp, block, exit, draft_model"
        raise UserError(f"train={spec.train.name}: proposes nothing; a sweep trains {expected}")
    return place


def _options(spec: TrainingSpec) -> dict[str, Any]:
    """Return what decides on the weights, by option."""
    found = {"max_steps": spec.trainer.get("max_steps"), "joint": spec.joint}
    found |= {"loss": spec.loss.name}
    found |= {"train._target_": spec.train.target, "loss._target_": spec.loss.target}
    nodes = ["train", "loss", "data", "trainer"]
    nodes += ["distill"] if spec.distill.get("path") is not None else []
    nodes += ["tuning"] if spec.joint else []
    for node in nodes:
        found |= _heeded(spec.options, node)
    if spec.joint:
        found |= {f"verifier.{name}": spec.verifier.get(name) for name in ("path", "revision")}
    return found


def _heeded(options: Mapping[str, Any], node: str) -> dict[str, Any]:
    left_out = {"_target_", *NEUTRAL[node]}
    if node in SEEDED and options[node].get("seed") == options["seed"]:
        left_out.add("seed")
    return {f"{node}.{key}": value for key, value in options[node].items() if key not in left_out}


def train_and_decode(config: DictConfig, folder: Path) -> float | None:
    """Train into a run directory, or resume there, and decode into it."""
    trained = folder / TRAINED

    def prepare() -> None:
        train_in_sweep(training_spec(config), trained, sweep=folder.parent.name)

    return decode_into(arm_spec(decoding(config, str(trained))), folder, prepare)
