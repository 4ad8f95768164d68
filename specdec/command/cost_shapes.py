"""Which trees of which proposers are timed, so that their seconds tell what steps cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from specdec.command.compose import compose_decode
from specdec.command.options import arm_spec, plain, proposer_part
from specdec.command.replay_grid import arm_config
from specdec.core.errors import Unfit, UserError
from specdec.lab.compatibility import require_parts_fit
from specdec.lab.costs.measurement import TimedShape
from specdec.lab.identity import draft_of
from specdec.lab.inputs import require_models
from specdec.lab.spec import ArmSpec, ProposerPart
from specdec.proposer.tree_fit import heads_config
from specdec.replaying.costs import DRAWN, LIKELIEST

DEEPEST = 4  # levels: as many as there usually are heads


def planned(config: DictConfig) -> tuple[dict[str, TimedShape], dict[str, ArmSpec]]:
    """Compose each proposer in a few shapes, by name; what cannot be is left out and named."""
    specs = {"none": _composed(["proposer=none"], {}, config)}
    shapes = {"none": TimedShape(draft_of(specs["none"].proposer), (), "")}
    unfit: dict[str, None] = {}
    for proposer in config.proposers:
        part = _proposer(str(proposer), config)
        try:
            _require_one_price(part)
        except Unfit as reason:
            unfit[f"left out of {proposer}: {reason}"] = None
            continue
        for plug_ins, tree, parents, choice in shapes_of(str(proposer), part, config):
            found = _composed([*config.options, *plug_ins], tree, config)
            try:
                require_parts_fit(found)
                require_models(found)
                _require_known_levels(found.proposer)
            except Unfit as reason:
                unfit[f"left out of {proposer}: {reason}"] = None
                continue
            name = f"{' '.join(plug_ins)} {dict(tree)}"
            specs[name] = found
            shapes[name] = TimedShape(draft_of(found.proposer), parents, choice)
    for reason in unfit:
        print(reason)
    return shapes, specs


def _require_known_levels(proposer: ProposerPart) -> None:
    """Refuse text: its tokens do not say how many were drafted, which is what a step costs.

    Raises:
        Unfit: a draft of another tokenizer writes it.
    """
    if proposer.drafts_text:
        raise Unfit("draft.vocabulary=strings: candidates are not the tokens that were drafted")


def _require_one_price(proposer: ProposerPart) -> None:
    """Refuse a proposer whose steps do not cost what their shape says.

    Raises:
        Unfit: it has parts, of which one drafts; or it is a cascade.
    """
    if proposer.parts:
        raise Unfit("a step costs what its parts do; measure its speed with specdec-compare")
    if proposer.is_cascade:
        raise Unfit("a chain costs what the middle model accepts; measure it with specdec-compare")


def _composed(overrides: Sequence[str], tree: Mapping[str, Any], config: DictConfig) -> ArmSpec:
    """Compose the options of one arm, with what this command says for all of them."""
    found = arm_config(overrides, tree, plain(config))
    own = {text.split("=")[0].lstrip("+") for text in overrides}
    for name, value in config.draft.items():  # unless a proposer says so itself
        if f"draft.{name}" not in own:
            found.draft[name] = value
    found.batch, found.keep_candidates = config.batch, 0
    spec = arm_spec(found)
    if spec.online is not None:
        raise UserError(f"options: online={spec.online.name}: weights stay as they are while timed")
    return spec


def shapes_of(
    proposer: str, part: ProposerPart, config: DictConfig
) -> Iterator[tuple[list[str], dict[str, Any], tuple[int, ...], str]]:
    """Yield chains and trees of known levels: two chains tell a level from the start of a step.

    Each as plug-ins, options of the tree, parents per level and how children are chosen.
    """
    chosen = _chosen(proposer)
    if not part.grows_trees:
        for gamma in (1, DEEPEST):
            yield chosen, {"tree.gamma": gamma}, (), DRAWN
        return
    depth = depth_of(part)
    for gamma in sorted({1, depth}):
        yield chosen, {"tree.gamma": gamma}, (1,) * gamma, DRAWN
        yield [*chosen, "tree=sparse"], {"tree.paths": [[0] * gamma]}, (1,) * gamma, LIKELIEST
    for width in config.widths if depth > 1 else ():
        below = [1] * (min(depth, 3) - 1)
        parents = (1, *(width for _ in below))
        yield [*chosen, "tree=sampled"], {"tree.widths": [width, *below]}, parents, DRAWN
        paths = {"tree.paths": [[rank, *[0] * len(below)] for rank in range(width)]}
        yield [*chosen, "tree=sparse"], paths, parents, LIKELIEST


def _proposer(proposer: str, config: DictConfig) -> ProposerPart:
    return proposer_part(compose_decode([*map(str, config.options), *_chosen(proposer)]))


def _chosen(proposer: str) -> list[str]:
    """Return the overrides that choose a proposer: "medusa proposer.path=my_heads"."""
    name, *options = proposer.split()
    return [f"proposer={name}", *options]


def depth_of(proposer: ProposerPart) -> int:
    """Return how deep a proposer drafts, up to four levels."""
    if not proposer.has_heads:
        return DEEPEST
    return min(DEEPEST, heads_config(proposer.path).get("num_heads", DEEPEST))
