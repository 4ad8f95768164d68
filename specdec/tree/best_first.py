"""Trees of exactly the likeliest paths, whatever shape that is."""

from collections.abc import Sequence

from torch import Tensor

from specdec.core.errors import require_int, require_number
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw, Level
from specdec.tree.fixed import require_confidence
from specdec.tree.ranking import best_of, likeliest, ranked_level


class BestFirst:
    """Exactly the `num_nodes` likeliest paths by the draft, as best-first search finds them.

    A path's probability is the product of q along it, each q over the whole vocabulary and at the
    text's temperature (of greedy text: 1). Below heads that know nothing of each other's tokens
    that is the tree of DDTree (arXiv 2604.12989); where the draft reads the tokens above, rows are
    those behind them. `dynamic` searches among a few nodes a level, at temperature 1.

    Best-first search takes one node after another from a heap, and asks for one row after another.
    Here whole levels grow, on the device and for all requests, and the best n paths are chosen in
    the end. None is lost: a node at depth d is in the tree with d - 1 nodes above it and all better
    ones of its level, so that n - d + 1 of a level are enough, and n - d of those with children.

    Of equally likely paths the shorter comes first, then the one whose parent comes first, then the
    one with the smaller token id.

    Args:
        num_nodes: draft tokens of the tree, at most; the root is none.
        max_depth: of the deepest of them.
        width: children of a node, at most; None: any number.
        min_gain: the probability that a path must have: what one more node costs in tokens, which
            is its seconds times tokens per second (CaDDTree, arXiv 2606.01813, at a fixed price).
        min_confidence: drafting ends before a token that the draft gives less probability.

    Raises:
        UserError: a number out of its range.
    """

    draw = Draw.DETERMINISTIC
    is_tempered = True

    def __init__(
        self,
        num_nodes: int = 16,
        max_depth: int = 4,
        width: int | None = None,
        min_gain: float = 0.0,
        min_confidence: float = 0.0,
    ):
        require_int("num_nodes", num_nodes, 1)
        require_int("max_depth", max_depth, 1)
        if width is not None:
            require_int("width", width, 1)
        require_number("min_gain", min_gain, 0.0, 1.0)
        require_confidence(min_confidence)
        self.num_nodes = num_nodes
        self.max_depth = min(max_depth, num_nodes)  # each node on the way down takes a place
        self.min_confidence = min_confidence
        self._width = num_nodes if width is None else width
        self._min_gain = min_gain

    @property
    def parents(self) -> list[int]:
        """As many nodes of each level as there are places for beside their nodes above."""
        found = [1]
        for depth in range(1, self.max_depth):
            found.append(min(found[-1] * self._children(depth), self.num_nodes - depth))
        return found

    def _children(self, depth: int) -> int:
        """Return how many children of a node there is room for, beside the nodes above them."""
        return min(self._width, self.num_nodes - depth + 1)

    @property
    def may_stop(self) -> bool:
        """Only where a node has to earn its place."""
        return self._min_gain > 0 or self.min_confidence > 0

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        """Take each frontier node's likeliest tokens; those go on that there is room for."""
        width = min(self._children(depth), draft_probs.shape[-1])
        most = self.num_nodes - depth + 1
        found = likeliest(draft_probs, width)
        return ranked_level(above, *found, max(1, most - 1), self._min_gain, most)

    def kept(self, levels: Sequence[Level], there: Tensor) -> Tensor:
        """Keep the best `num_nodes` of all levels."""
        return best_of(levels, there, self.num_nodes)
