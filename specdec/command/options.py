"""The door between Hydra and the rest: a configuration becomes plain options, and these a spec."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import InterpolationKeyError

from specdec.command.compose import compose_decode, composed
from specdec.core.errors import Unfit, UserError, require
from specdec.core.protocols import TreePolicy
from specdec.core.values import CandidateSource
from specdec.lab.compatibility import require_plain_chain
from specdec.lab.part import TARGET, Part
from specdec.lab.spec import ArmSpec, ProposerPart, source_of
from specdec.lab.training_spec import TrainingSpec
from specdec.lm.devices import AUTO, checked_device, settled_dtype, training_device
from specdec.proposer.cascade import Cascade
from specdec.training.data.text import FILES

POINTS_TO = re.compile(r"\$\{([\w.]+)\}")
INNER = ("proposer.", "tree", "draft.")  # options that a cascade's inner proposer has of its own
NODES = {
    "verifier": "verifier.path=MODEL",
    "draft": "draft.path=MODEL",
    "prompts": "prompts.path=FILE",
    "sampling": "sampling.temperature=0.7",
    "proposer": "one that --help names, proposer=ngram",
    "tree": "one that --help names, tree=chain",
    "cache": "one that --help names, cache=sliding_window",
    "pace": "one that --help names, pace=adaptive",
    "verification": "one that --help names, verification=block",
    "verification.rule": "one that --help names, verification=block",
}


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain values, resolved; `dtype: auto` is what it stands for here.

    So a run is known by the type that it was decoded with, whatever the next machine computes in.

    Raises:
        MissingMandatoryValue: an option that must be given was not.
    """
    found: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _settle_dtypes(found, training_device())
    return found


def _settle_dtypes(node: dict[str, Any], device: str) -> None:
    device = node.get("device") or device
    if node.get("dtype") == AUTO:
        node["dtype"] = settled_dtype(AUTO, checked_device(device))
    for each in node.values():
        if isinstance(each, dict):
            _settle_dtypes(cast(dict[str, Any], each), device)


def points(config: DictConfig) -> dict[str, str]:
    """Return which options are taken from others, `gamma: ${tree.gamma}`; not what is computed."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [("", OmegaConf.to_container(config, resolve=False))]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{at}.{name}".lstrip("."), each) for name, each in value.items()]
        if isinstance(value, list):  # of parts
            waiting += [(f"{at}.{place}", each) for place, each in enumerate(value)]
        there = POINTS_TO.fullmatch(value) if isinstance(value, str) else None
        if there is not None:
            found[at] = there[1]
    return found


def arm_spec(config: DictConfig) -> ArmSpec:
    """Read the options of `decode`, or of an arm of `compare`.

    Raises:
        UserError: one of them is not what it should be.
    """
    require_nodes(config)
    config = with_inner(with_parts(config))
    try:
        options = plain(config)
    except InterpolationKeyError:  # ${tree.gamma}, of a tree that has none
        _require_plain_chain(config)
        raise
    return ArmSpec.of(options, _judges(options["judges"]), points(config))


def training_spec(config: DictConfig) -> TrainingSpec:
    """Read the options of `train`.

    Raises:
        UserError: nothing says what to train on.
    """
    if OmegaConf.is_missing(config.data, "path"):
        raise UserError(f"data.path: missing; expected data.path=FILE, {FILES}, or a data set")
    return TrainingSpec.of(plain(config), points(config))


def _require_plain_chain(config: DictConfig) -> None:
    """Refuse a tree of which a proposer, or one of its parts, cannot take what it wants."""
    if declared(config.proposer) is CandidateSource.PARTS:
        raise Unfit(
            "proposer.parts: one takes the length of its chains from the tree, which has no gamma;"
            ' expected tree=chain, or a length of its own, "suffix proposer.gamma=4"'
        )
    if declared(config.proposer) is CandidateSource.TEXT:
        choices = config.choices or {}
        tree = Part[TreePolicy]("tree", plain(config.tree), choices.get("tree"))
        proposer = Part[Any]("proposer", {TARGET: config.proposer[TARGET]}, choices.get("proposer"))
        require_plain_chain(tree.build(), proposer.name, tree.name)


def declared(node: DictConfig) -> CandidateSource | None:
    """Return the `source` that the class of a node declares, whatever else the node says."""
    key = node._get_full_key(None)
    return source_of(Part[Any](key, {TARGET: node.get(TARGET)}))


def proposer_part(config: DictConfig) -> ProposerPart:
    """Read the proposer alone, of any configuration that has one."""
    config = with_inner(with_parts(config))
    found: Any = OmegaConf.to_container(config, resolve=True)
    choices = found.get("choices") or {}
    tree = Part[TreePolicy]("tree", found["tree"], choices.get("tree"))
    called = choices.get("proposer")
    return ProposerPart("proposer", found["proposer"], called, points(config), tree=tree)


def with_parts(config: DictConfig) -> DictConfig:
    """Replace the names of a proposer's parts by what their own YAML files have, options included.

    Each is a name with options of its own, "suffix proposer.min_matched=2". What parts take from
    elsewhere, `${tree}`, they take from this configuration.

    Raises:
        UserError: one of them is no proposer.
    """
    parts = config.proposer.get("parts")
    if declared(config.proposer) is not CandidateSource.PARTS or not isinstance(parts, ListConfig):
        return config
    nodes = OmegaConf.to_container(parts, resolve=False)
    assert isinstance(nodes, list)
    found = deepcopy(config)
    with flag_override(found, ["struct", "readonly"], False):
        found.proposer.parts = [_part_of(each) if isinstance(each, str) else each for each in nodes]
        for place, each in enumerate(found.proposer.parts):
            if isinstance(each, DictConfig) and "parts" in each:
                raise UserError(f"proposer.parts.{place}: has parts itself; expected its parts")
            if isinstance(each, DictConfig) and isinstance(each.get("inner"), str):
                expected = "parts without one; proposer=cascade takes a hybrid as proposer.inner"
                raise UserError(
                    f"proposer.parts.{place}: has a proposer of its own; expected {expected}"
                )
    return found


def _part_of(text: str) -> object:
    name, *options = text.split() or [""]
    example = "one that --help names, with options of its own, [suffix,draft_model]"
    strange = [each for each in options if not each.lstrip("+").startswith("proposer.")]
    require(name.isidentifier() and not strange, "proposer.parts", text, example)
    node = compose_decode([f"proposer={name}", *options]).proposer
    return OmegaConf.to_container(node, resolve=False)


def with_inner(config: DictConfig) -> DictConfig:
    """Put what YAML files have in place of the names of a cascade's inner proposer and rule.

    Raises:
        UserError: one of them is none.
    """
    node = config.proposer
    kind = Part[Any]("proposer", {TARGET: node.get(TARGET)}).kind
    if kind is None or not issubclass(kind, Cascade):
        return config
    for part, example in (("inner", "a proposer, ngram"), ("rule", "a rule, rejection")):
        require(isinstance(node[part], str | DictConfig), f"proposer.{part}", node[part], example)
    found = deepcopy(config)
    with flag_override(found, ["struct", "readonly"], False):
        if isinstance(node.inner, str):
            found.proposer.inner = _inner(node.inner, config)
        if isinstance(node.rule, str):
            found.proposer.rule = _rule("proposer.rule", node.rule)
    return found


def _inner(text: str, config: DictConfig) -> object:
    """Compose a proposer with a tree and a draft of its own, on the machine of the others."""
    name, *options = text.split() or [""]
    strange = [each for each in options if not each.lstrip("+").startswith(INNER)]
    example = 'a proposer with options of its own, "draft_model draft.path=TINY tree.gamma=6"'
    require(name.isidentifier() and not strange, "proposer.inner", text, example)
    require(name != "cascade", "proposer.inner", text, "a proposer that is no cascade itself")
    found = with_parts(compose_decode([f"proposer={name}", *options]))
    for shared in ("verifier", "device", "dtype", "attention", "runtime", "seed"):
        if shared in config:
            found[shared] = config[shared]
    return OmegaConf.to_container(found.proposer, resolve=True)


def _rule(field: str, name: str) -> dict[str, Any]:
    require(name.isidentifier(), field, name, "a rule that --help names, rejection")
    return plain(composed("verification", name).rule)


def require_nodes(config: DictConfig) -> None:
    """Refuse `prompts=my.jsonl`, where `prompts.path=my.jsonl` is meant."""
    for name, example in NODES.items():
        node = OmegaConf.select(config, name)
        if not isinstance(node, DictConfig):
            raise UserError(f"{name}={node}: expected {example}")


def _judges(judges: object) -> Mapping[str, Mapping[str, Any]]:
    """Return the rules that are named by `judges`, each as its own YAML file has it."""
    names = isinstance(judges, list) and all(str(name).isidentifier() for name in judges)
    require(names, "judges", judges, "a list of rules, [block,traversal]")
    listed = judges if isinstance(judges, list) else []
    return {str(name): plain(composed("verification", str(name)).rule) for name in listed}
