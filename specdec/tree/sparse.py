"""A fixed tree of ranks: the k-th likeliest token after the j-th likeliest token after ..."""

from collections.abc import Sequence

from torch import Tensor

from specdec.core.errors import UserError, require
from specdec.core.narrowing import are_integers, is_sequence
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw
from specdec.tree.fixed import Candidates, FixedTree, Path


class Sparse(FixedTree):
    """Deterministic candidates at rank paths (Cai et al. 2024, Medusa, section 3.1 and figure 6).

    The path (2, 0) is the likeliest token after the third likeliest. Ranks count from 0. Every
    beginning of a path is a node too, listed or not.

    Args:
        paths: ranks from the root down, [[0], [1], [0, 0]].
        min_confidence: drafting ends before a token that the draft gives less probability.

    Raises:
        UserError: there is no path, or one of them is not a list of ranks.
    """

    draw = Draw.DETERMINISTIC

    def __init__(self, paths: Sequence[Sequence[int]], min_confidence: float = 0.0):
        super().__init__(_closed(paths), min_confidence)

    @property
    def max_rank(self) -> int:
        """The largest rank on any path."""
        return max(max(path) for path in self.nodes)

    def candidates(
        self, draft_probs: Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        """Choose the likeliest tokens; nothing is drawn."""
        return Candidates(draft_probs.topk(width, dim=-1).indices)


def _closed(paths: Sequence[Sequence[int]]) -> list[Path]:
    """Return all paths and their beginnings."""
    require(bool(paths) and is_sequence(paths), "paths", paths, "lists of ranks")
    nodes: set[Path] = set()
    for path in paths:
        if not are_integers(path, 0):
            raise UserError(f"paths: {path!r}: expected a list of ranks, 0 the likeliest")
        nodes |= {tuple(path[:depth]) for depth in range(1, len(path) + 1)}
    return list(nodes)
