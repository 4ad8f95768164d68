"""Trees that are as wide and as deep as the draft's own probabilities suggest."""

from collections.abc import Sequence

from torch import Tensor

from specdec.core.errors import require_int, require_number
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw, Level
from specdec.tree.fixed import require_confidence
from specdec.tree.ranking import best_of, ranked_level


class Dynamic:
    """The `num_nodes` candidates of the largest joint draft probability, best first.

    A path's joint probability stands for the probability that all of it is accepted, so the tree is
    the one of the largest expected number of accepted tokens, as far as the draft can tell. Each
    level keeps its `beam` best nodes, and each of those gets its `beam` likeliest tokens, down to
    `max_depth` (Li et al. 2024, EAGLE-2; Wang et al. 2024, OPT-Tree). Exact for
    `beam >= num_nodes`.

    A node is left out if its joint probability is below `min_gain`: the accepted tokens that one
    more node must bring, which is what it costs in tokens (its seconds times tokens per second).

    Args:
        num_nodes: draft tokens of the tree, at most.
        max_depth: of the deepest of them.
        beam: nodes that a level keeps, and children that each gets.
        min_gain: the joint probability that a node must have.
        min_confidence: drafting ends before a token that the draft gives less probability.

    Raises:
        UserError: a number out of its range.
    """

    draw = Draw.DETERMINISTIC

    def __init__(
        self,
        num_nodes: int = 16,
        max_depth: int = 4,
        beam: int = 8,
        min_gain: float = 0.0,
        min_confidence: float = 0.0,
    ):
        for name, value in (("num_nodes", num_nodes), ("max_depth", max_depth), ("beam", beam)):
            require_int(name, value, 1)
        require_number("min_gain", min_gain, 0.0, 1.0)
        require_confidence(min_confidence)
        self.num_nodes = num_nodes
        self.max_depth = max_depth
        self.min_confidence = min_confidence
        self._beam = beam
        self._min_gain = min_gain

    @property
    def parents(self) -> list[int]:
        """The best nodes of each level."""
        return [1, *[self._beam] * (self.max_depth - 1)]

    @property
    def may_stop(self) -> bool:
        """Only where a node has to earn its place."""
        return self._min_gain > 0 or self.min_confidence > 0

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        """Take each frontier node's likeliest tokens; the best of all of them go on."""
        best = draft_probs.topk(min(self._beam, draft_probs.shape[-1]), dim=-1)  # [B, F, K]
        return ranked_level(above, best.values, best.indices, self._beam, self._min_gain)

    def kept(self, levels: Sequence[Level], there: Tensor) -> Tensor:
        """Keep the best `num_nodes` of all levels."""
        return best_of(levels, there, self.num_nodes)
