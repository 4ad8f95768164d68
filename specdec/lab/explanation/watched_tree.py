"""A tree policy that remembers what it was shown, and what it chose."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

from torch import Tensor

from specdec.core.on_host import integers
from specdec.core.protocols import TemperedTree, TreePolicy
from specdec.core.randomness import RandomStream
from specdec.core.values import Level

Path = tuple[int, ...]  # draft tokens below the last committed one


@dataclass
class Growth:
    """How the tree of one request grew."""

    draft_probs: dict[Path, Tensor] = field(default_factory=dict[Path, Tensor])  # [V]: q after it
    grown: list[Path] = field(default_factory=list[Path])  # the candidates, level by level


class WatchedTree:
    """Decides as another policy does; of the first request of a batch `growth` is what it saw.

    It is no `DrawnChain`: what is drafted in one go shows nobody its levels.
    """

    def __init__(self, tree: TreePolicy):
        self.tree = tree
        self.draw = tree.draw
        self.max_depth = tree.max_depth
        self.parents = tree.parents
        self.min_confidence = tree.min_confidence
        self.may_stop = tree.may_stop
        self.is_tempered = isinstance(tree, TemperedTree) and tree.is_tempered
        self.growth = Growth()
        self._frontier: list[Path] = []

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        """Choose as the policy does."""
        if above is None:
            self.growth, self._frontier = Growth(), [()]
        level = self.tree.expand(above, depth, draft_probs, streams)
        seen = draft_probs if level.draft_probs is None else level.draft_probs
        self.growth.draft_probs |= zip(self._frontier, seen[0], strict=True)
        parents, token_ids = integers(level.parents[0]), integers(level.token_ids[0])
        paths = [
            (*self._frontier[parent], token_id)
            for parent, token_id in zip(parents, token_ids, strict=True)
        ]
        there = None if level.there is None else integers(level.there[0].long())
        self.growth.grown += paths if there is None else compress(paths, there)
        self._frontier = [paths[place] for place in integers(level.frontier[0])]
        return level

    def kept(self, levels: Sequence[Level], there: Tensor) -> Tensor:
        """Choose, in the end, as the policy does."""
        return self.tree.kept(levels, there)

    def taken(self) -> Growth:
        """Return what was seen since the last time."""
        found, self.growth = self.growth, Growth()
        return found
