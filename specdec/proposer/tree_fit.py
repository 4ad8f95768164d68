"""Whether a tree fits the draft that grows it; known before any model is loaded."""

import json
from pathlib import Path
from typing import Any

from specdec.core.errors import Unfit, UserError, require_number
from specdec.core.members import require_members
from specdec.core.protocols import TreePolicy
from specdec.core.values import Draw
from specdec.lm.checkpoint import source
from specdec.lm.folder import content_of


def require_growable(tree: object, temperature: object) -> None:
    """Refuse what is no tree, and no temperature of drafts; None is the verifier's.

    Raises:
        UserError: a member of `TreePolicy` is missing, or the temperature is negative.
    """
    require_members(tree, "tree")
    if temperature is not None:
        require_number("temperature", temperature, 0.0)


def require_levels(tree: TreePolicy, num_heads: int, where: str = "") -> None:
    """Refuse a tree that is deeper than there are heads; `where` ends the message."""
    if tree.max_depth > num_heads:
        raise Unfit(f"tree: {tree.max_depth} levels, but there are {num_heads} heads{where}")


def require_ranks(tree: TreePolicy, vocab_size: int, where: str = "") -> None:
    """Refuse a tree of fixed ranks of which one is beyond the vocabulary."""
    max_rank = getattr(tree, "max_rank", None)  # trees that choose by other means have none
    if max_rank is not None and max_rank >= vocab_size:
        raise UserError(f"tree: rank {max_rank}, but there are {vocab_size} tokens{where}")


def require_single_chain(tree: TreePolicy, name: str = "") -> None:
    """Refuse what is no chain of drawn tokens for a draft that writes text.

    Raises:
        Unfit: it branches, or its tokens are not simply drawn.
    """
    if tree.draw is not Draw.SINGLE:
        said = f"tree={name}" if name else f"tree: {type(tree).__name__}"
        raise Unfit(f"{said}: a draft of vocabulary=strings writes one text; expected tree=chain")


def require_heads_fit(tree: TreePolicy, path: object) -> None:
    """Refuse a tree that a folder of heads cannot grow, going by its `config.json`."""
    sizes = heads_config(path)
    where = f" in path={path!r}"
    if isinstance(sizes.get("num_heads"), int):
        require_levels(tree, sizes["num_heads"], where)
    if isinstance(sizes.get("vocab_size"), int):
        require_ranks(tree, sizes["vocab_size"], where)


def require_kind(kind: str, path: object) -> None:
    """Refuse a folder of something else than heads of the class `kind`, and say what it is.

    Raises:
        UserError: it holds other heads, a language model, or something of another framework; or its
            `config.json` is damaged.
    """
    where = f"path={path!r}"
    try:
        there = content_of(str(path))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if there is not None and there.heads != kind:
        raise UserError(f"{where}: no {kind}; {there.description}")
    if there is None and Path(str(path)).is_dir():
        raise UserError(f"{where}: no {kind}; there is no config.json in that folder")


def heads_config(path: object) -> dict[str, Any]:
    """Read what a folder of heads was built with; empty where it does not say.

    What is wrong with such a folder is for `load_heads` to tell.
    """
    try:
        text = (Path(source(str(path))) / "config.json").read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError, UserError):
        return {}
    return found if isinstance(found, dict) else {}
