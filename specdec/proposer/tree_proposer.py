"""What proposers share whose candidates a tree chooses among a draft's distributions."""

from specdec.core.protocols import TreePolicy
from specdec.core.values import Draw
from specdec.proposer.tree_fit import require_growable, require_ranks


class TreeProposer:
    """The tree, and the temperature of sampled drafts; None is the verifier's.

    Raises:
        UserError: there is no such tree or temperature, or the tree names a rank beyond the
            draft's vocabulary.
    """

    def __init__(self, tree: TreePolicy, temperature: float | None, vocab_size: int):
        require_growable(tree, temperature)
        require_ranks(tree, vocab_size)
        self.tree = tree
        self.temperature = temperature
        self._vocab_size = vocab_size  # the draft's, until `open` says how wide q is to be

    @property
    def draw(self) -> Draw:
        """Chosen by the tree."""
        return self.tree.draw

    @property
    def max_depth(self) -> int:
        """Chosen by the tree."""
        return self.tree.max_depth
