"""Which proposers and trees fit a model: asked of the code that refuses arms before they load."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig

from specdec.command.compose import compose_decode, composed
from specdec.command.options import arm_spec, declared, plain
from specdec.core.errors import UserError
from specdec.core.members import require_members
from specdec.core.protocols import TreePolicy
from specdec.core.values import CandidateSource
from specdec.lab.compatibility import (
    require_proposer,
    require_sides_fit,
    require_tree_fits,
    require_tree_read,
)
from specdec.lab.inputs import require_heads_of
from specdec.lab.part import Part
from specdec.lab.spec import ArmSpec, ProposerPart
from specdec.lm.draft_vocabulary import vocabulary_between
from specdec.lm.loadable import refuse_unsupported

# What a proposer still needs, where no option names it.
NEEDS: Mapping[CandidateSource, str] = {
    CandidateSource.MODEL: "a draft model with its tokens; draft.path=MODEL is held against it",
    CandidateSource.HEADS: "heads that are trained for it; proposer.path=HEADS is held against it",
    CandidateSource.VERIFIER: "",
    CandidateSource.TEXT: "",
    CandidateSource.NOTHING: "",
    CandidateSource.PARTS: "",
}


@dataclass(frozen=True)
class Fit:
    """The trees that a proposer can grow on a model."""

    needs: str = ""  # what it is given beside the model
    against: str | None = None  # why it does not fit at all
    trees: list[str] = field(default_factory=list[str])
    reasons: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # to trees


@dataclass(frozen=True)
class Fits:
    """All proposers, and the trees that nobody can grow before an option is given."""

    proposers: dict[str, Fit]
    incomplete: dict[str, list[str]]  # such trees, by what they lack


def fits_of(config: DictConfig) -> Fits:
    """Hold every proposer and every tree that there are against a model."""
    nodes = {name: composed("tree", name) for name in _names("tree")}
    whole: dict[str, DictConfig] = {}
    incomplete: dict[str, list[str]] = {}
    for name, node in nodes.items():
        reason = _complaint(Part[TreePolicy]("tree", plain(node), name).build)
        if reason is None:
            whole[name] = node
        else:
            incomplete.setdefault(reason, []).append(name)
    return Fits({name: _fit(name, whole, config) for name in _names("proposer")}, incomplete)


def _names(group: str) -> list[str]:
    """List the plug-ins of a group, the user's own among them."""
    loader = GlobalHydra.instance().config_loader()
    return sorted(loader.get_group_options(group, ObjectType.CONFIG))


def _fit(name: str, trees: Mapping[str, DictConfig], config: DictConfig) -> Fit:
    proposer = composed("proposer", name)
    arms = {tree: _options(name, proposer, tree, node, config) for tree, node in trees.items()}
    own = arm_spec(arms["chain"])
    found = Fit(_needs(own.proposer, config), _complaint(lambda: _require_fits(own, config)))
    if found.against is not None or own.proposer.source is CandidateSource.NOTHING:
        return found
    for tree, options in arms.items():
        reason = _complaint(lambda options=options: _require_tree(arm_spec(options)))
        if reason is None:
            found.trees.append(tree)
        else:
            found.reasons.setdefault(reason.removeprefix(f"tree={tree}: "), []).append(tree)
    return found


def _options(
    name: str, proposer: DictConfig, tree: str, node: DictConfig, config: DictConfig
) -> DictConfig:
    """Compose an arm of this model; a draft that nobody named has the vocabulary of the model."""
    found = compose_decode([])
    found.proposer, found.tree = proposer, node
    found.choices = {**found.choices, "proposer": name, "tree": tree}
    named = config.verifier if config.draft.path is None else config.draft
    for each in ("path", "revision", "trust_remote_code"):
        found.verifier[each], found.draft[each] = config.verifier[each], named[each]
    found.draft.vocabulary = config.draft.vocabulary
    if declared(found.proposer) is CandidateSource.HEADS:
        found.proposer.path = config.proposer.path
    return found


def _require_fits(spec: ArmSpec, config: DictConfig) -> None:
    """Refuse a draft or heads that are of another model, as far as files tell.

    Raises:
        UserError: they are.
    """
    require_proposer(spec.proposer)
    verifier = spec.verifier.checkpoint
    if spec.proposer.has_heads and config.proposer.path is not None:
        require_heads_of(config.proposer.path, verifier)
    for model in spec.proposer.models if config.draft.path is not None else ():
        draft = model.checkpoint
        refuse_unsupported(draft.config, draft.called)
        vocabulary_between(draft, verifier, model.vocabulary)
        require_sides_fit(spec)


def _require_tree(spec: ArmSpec) -> None:
    """Refuse a tree that the proposer cannot grow.

    Raises:
        UserError: it cannot.
    """
    tree = spec.tree.build()
    require_members(tree, "tree")
    require_tree_fits(spec, tree)
    require_tree_read(spec, tree)


def _needs(proposer: ProposerPart, config: DictConfig) -> str:
    source = proposer.source
    given = {CandidateSource.MODEL: config.draft.path, CandidateSource.HEADS: config.proposer.path}
    return "" if source is None or given.get(source) is not None else NEEDS[source]


def _complaint(look: Callable[[], object]) -> str | None:
    try:
        look()
    except UserError as error:
        return str(error)
    return None
