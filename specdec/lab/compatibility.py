"""Which parts of a configuration go together: known, and refused, before any model is loaded."""

import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

from specdec.command.compose import composed
from specdec.core.errors import Unfit, UserError, require
from specdec.core.members import require_members, require_methods
from specdec.core.plug_ins import plug_in_name
from specdec.core.protocols import TreePolicy, VerificationRule
from specdec.core.values import Draw
from specdec.decoding.pairing import is_lossless, require_judges
from specdec.lab.build import build, located
from specdec.lab.identity import files_of
from specdec.lab.inputs import is_model
from specdec.lab.option_names import named_options
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.load import vocabulary_size
from specdec.proposer.tree_fit import require_heads_fit, require_kind, require_ranks
from specdec.results.options import TARGET
from specdec.tree.calibration_file import read_calibration
from specdec.tree.chain import Chain


def require_parts_fit(config: DictConfig) -> None:
    """Build the tree, the rule and the judges, and refuse what cannot go together.

    Raises:
        UserError: the proposer cannot grow the tree, as far as files tell, or the rule or a judge
            is not for such candidates, or is not what it says.
    """
    tree = build(config.tree)
    require_members(tree, "tree")
    require_proposer(config.proposer)
    require_tree_fits(config, tree)
    rule, judges = build(config.verification.rule), build_judges(config)
    for each in (rule, *judges.values()):
        require_members(each, "verification rule")
    draw = draw_of(config.proposer, tree)
    is_lossless(rule, draw, config.verification.allow_lossy)
    require_judges(judges, draw)


def require_proposer(node: DictConfig) -> None:
    """Refuse what is no proposer, as far as its class tells, or an object that needs no model."""
    made_by = located(node)
    kind = getattr(made_by, "__self__", made_by)  # of a class or constructor
    given = dict.fromkeys(str(name) for name in node if not str(name).startswith("_"))
    try:
        inspect.signature(made_by).bind_partial(**given)
    except TypeError as error:
        raise UserError(f"proposer: {node._target_}: {error}") from None
    if isinstance(kind, type):
        require_methods(kind, "proposer")
    ours = str(kind.__module__).startswith("specdec.")
    if not ours and "verifier" not in node and not any(map(is_model, node.values())):
        require_members(build(node), "proposer")


def require_tree_fits(config: DictConfig, tree: TreePolicy) -> None:
    """Refuse a tree that the proposer cannot grow, as far as files tell."""
    proposer = config.proposer
    if "verifier" in proposer:  # heads
        kind = getattr(getattr(located(proposer), "__self__", None), "kind", None)
        with named_options(proposer):
            if isinstance(kind, type):
                require_kind(kind.__name__, proposer.path)
            require_heads_fit(tree, proposer.path)
    elif "model" in proposer:
        draft = Checkpoint.of(config.draft)
        require_ranks(tree, vocabulary_size(draft), f" in {draft.called}")
    elif "gamma" in list(proposer):  # `in proposer` would not find what cannot be resolved
        require_plain_chain(tree, name_of_node(config, "proposer"), name_of_node(config, "tree"))


def require_plain_chain(tree: TreePolicy, proposer: str, name: str) -> None:
    """Refuse what `proposer`, which takes only the length from its tree, would not heed."""
    reason = f"proposer={proposer} copies one text and knows no probabilities; expected"
    if not isinstance(tree, Chain) or tree.draw is not Draw.SINGLE:
        raise Unfit(f"tree={name}: {reason} tree=chain")
    if tree.min_confidence > 0:
        raise Unfit(f"tree.min_confidence={tree.min_confidence}: {reason} 0")


def calibration_notes(config: DictConfig) -> list[str]:
    """Say where a measured tree is used otherwise than it was measured; lossless all the same."""
    if "path" not in config.tree:
        return []
    found = read_calibration(config.tree.path, dict)
    heads = "verifier" in config.proposer
    here = {
        "proposer": name_of_node(config, "proposer"),
        "proposer.path": config.proposer.get("path") if heads else None,
        "draft.path": None if heads else config.draft.path,
        "verifier.path": config.verifier.path,
    }
    measured = {name: found.get(name.replace(".", "_")) for name in here}
    nodes = ("proposer", "draft", "verifier")
    states = {f"{node}.revision": config[node].get("revision") for node in nodes}
    for name, digest in files_of({**here, **states}).items():
        if digest == found.get("files", {}).get(name):  # the same, however it is written
            measured[name] = here[name]
        elif measured[name] == here[name]:  # another one, in the place of that one
            measured[name] = f"{measured[name]} as it was then"
    if plug_in_name(config.tree[TARGET]) == "sequoia":
        at = found["positional"].get("sampling", {})
        for name in ("temperature", "top_k", "top_p", "min_p"):
            here[f"sampling.{name}"] = config.sampling[name]
            measured[f"sampling.{name}"] = at.get(name)
    return [
        f"note: tree.path={config.tree.path} was measured with {name}={then}, this is {here[name]}"
        for name, then in measured.items()
        if None not in (then, here[name]) and then != here[name]
    ]


def draw_of(proposer: DictConfig, tree: TreePolicy) -> Draw | None:
    """Return how candidates will be chosen: by the tree, or as the proposer's class says.

    None where nothing is proposed, or only the proposer itself can say, once it is built.
    """
    if "tree" in proposer:
        return tree.draw
    target = located(proposer)
    draw = getattr(getattr(target, "__self__", target), "draw", None)  # of a class or constructor
    return draw if isinstance(draw, Draw) else None


def build_judges(config: DictConfig) -> dict[str, VerificationRule]:
    """Build the rules that are named by `judges`, each as its own YAML file has it."""
    judges: Any = config.judges
    names = isinstance(judges, ListConfig) and all(str(name).isidentifier() for name in judges)
    require(names, "judges", judges, "a list of rules, [block,traversal]")
    rules: Mapping[str, DictConfig] = {name: composed("verification", name) for name in judges}
    return {name: build(node.rule) for name, node in rules.items()}


def name_of_node(config: DictConfig, group: str) -> str:
    """Return what the command line calls the plug-in of a group: what it was chosen as."""
    node = config[group].rule if group == "verification" else config[group]
    return (config.choices or {}).get(group) or plug_in_name(node[TARGET])
