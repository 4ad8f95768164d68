"""A fixed tree of ranks: the k-th likeliest token after the j-th likeliest token after ..."""

from collections.abc import Sequence

from torch import Tensor

from specdec.core.errors import UserError, require
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw, Level

Path = tuple[int, ...]


class Sparse:
    """Deterministic candidates at rank paths (Cai et al. 2024, Medusa, section 3.1 and figure 6).

    The path (2, 0) is the likeliest token after the third likeliest. Ranks count from 0. Every
    beginning of a path is a node too, listed or not.

    Raises:
        UserError: there is no path, or one of them is not a list of ranks.
    """

    draw = Draw.DETERMINISTIC

    def __init__(self, paths: Sequence[Sequence[int]]):
        nodes = _closed(paths)
        self.max_depth = max(map(len, nodes))
        self.num_nodes = len(nodes)
        self._levels = [_level(nodes, depth) for depth in range(1, self.max_depth + 1)]

    @property
    def max_rank(self) -> int:
        """The largest rank on any path."""
        return max(max(ranks) for _, ranks in self._levels)

    def expand(self, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]) -> Level:
        """Choose the candidates at `depth` by their ranks; nothing is drawn."""
        parents, ranks = self._levels[depth - 1]
        best = draft_probs.topk(max(ranks) + 1, dim=-1).indices  # [B, F, K]
        return Level(parents, best[:, parents, ranks])


def _closed(paths: Sequence[Sequence[int]]) -> list[Path]:
    """All paths and their beginnings, level by level, siblings by rank."""
    require(isinstance(paths, Sequence) and bool(paths), "tree.paths", paths, "lists of ranks")
    nodes: set[Path] = set()
    for path in paths:
        good = isinstance(path, Sequence) and bool(path)
        if not good or not all(isinstance(rank, int) and rank >= 0 for rank in path):
            raise UserError(f"tree.paths: {path!r}: expected a list of ranks, 0 the likeliest")
        nodes |= {tuple(path[:depth]) for depth in range(1, len(path) + 1)}
    return sorted(nodes, key=lambda path: (len(path), path))


def _level(nodes: Sequence[Path], depth: int) -> tuple[Path, Path]:
    """Parents (numbered within the level above) and ranks of the nodes at one depth."""
    above = [path for path in nodes if len(path) == depth - 1] or [()]
    here = [path for path in nodes if len(path) == depth]
    return tuple(above.index(path[:-1]) for path in here), tuple(path[-1] for path in here)
