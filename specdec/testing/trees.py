"""Does a tree grow what it says? Tried with a draft whose distributions are known."""

from collections.abc import Sequence

from specdec.core.errors import UserError
from specdec.core.members import require_members
from specdec.core.protocols import TreePolicy
from specdec.core.values import Context, Proposal
from specdec.proposer.draft_model import DraftModel
from specdec.testing.proposers import check_proposer
from specdec.testing.table_lm import random_table


def check_tree(tree: TreePolicy, vocab_size: int = 13) -> None:
    """Grow a tree from a draft model, and check the proposer that results; see `check_proposer`.

    Beyond that no level may have more nodes with children than `parents` announces: memory is
    set aside by it.

    Args:
        tree: of candidates that are drawn or chosen as `tree.draw` says.
        vocab_size: tokens of the draft, more than a node has children.

    Raises:
        UserError: a member is missing, or the tree grows something else than it declares.
    """
    require_members(tree, "tree")
    name = f"{type(tree).__module__}.{type(tree).__qualname__}"
    if len(tree.parents) != tree.max_depth:
        said = f"{len(tree.parents)} levels in `parents`, and max_depth={tree.max_depth}"
        raise UserError(f"{name}: {said}")
    check_proposer(lambda: _Grown(tree, name, vocab_size), random_table(1, vocab_size))


class _Grown(DraftModel):
    """A draft model whose levels are counted."""

    def __init__(self, tree: TreePolicy, name: str, vocab_size: int):
        super().__init__(random_table(2, vocab_size), tree)
        self._grown, self._name = tree, name

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        proposals = super().propose(contexts)
        for proposal in proposals:
            inner = {parent for parent in proposal.tree.parents if parent >= 0}
            for depth, most in enumerate(self._grown.parents):
                found = sum(proposal.tree.depths[node] == depth for node in inner)
                if found > most:
                    reason = (
                        f"{found} nodes with children at depth {depth}, and `parents` has {most}"
                    )
                    raise UserError(f"{self._name}: {reason}")
        return proposals
