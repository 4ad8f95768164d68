"""Whether a model reads the trees that it will be shown: recurrent layers read chains alone."""

from specdec.core.errors import Unfit
from specdec.core.protocols import Proposer, leaves
from specdec.lm.hf import HFCausalLM


def require_reads(reader: object, proposer: Proposer, called: str = "") -> None:
    """Refuse trees with branches where a model reads chains alone, as far as shapes tell.

    Args:
        reader: what verifies the candidates.
        proposer: where they come from.
        called: how the message begins.

    Raises:
        Unfit: some of them may have branches.
    """
    if not isinstance(reader, HFCausalLM) or reader.no_trees is None:
        return
    if any(map(_branches, (proposer, *leaves(proposer)))):
        raise Unfit(f"{called}{reader.tree_refusal}")


def _branches(proposer: Proposer) -> bool:
    """Whether there may be any: by a tree policy, or by itself without one."""
    tree = getattr(proposer, "tree", None)
    nodes, depth = (getattr(tree, name, None) for name in ("num_nodes", "max_depth"))
    # Of a chain they are the same.
    return getattr(proposer, "branches", False) or (tree is not None and nodes != depth)
