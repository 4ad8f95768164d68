"""How often paths of ranks hold in a text, and the trees that follow from it.

A path (r0, r1, ...) holds at a position where each next token had the rank r_i in the draft's
distribution after the true tokens before it. A deterministic tree accepts one token for each of its
nodes whose path holds, so the expected number of accepted tokens is the sum of its paths'
frequencies; and a path holds no more often than its beginning. Hence the n most frequent paths are
the best tree of n nodes, and no search is needed.
"""

import heapq
from collections.abc import Sequence
from itertools import accumulate
from operator import floordiv, truediv
from typing import Any

import torch
from torch import Tensor

from specdec.tree.fixed import Path


class PathCounts:
    """How often each path holds, jointly, among S positions that are looked at D tokens ahead.

    `ranks` [S, D] (any integer type) are the true tokens' ranks from 0; one above `max_rank` ends
    the path there. `marginals` [D, max_rank + 1] counts each depth's ranks, whatever came before.
    With `weights` [S] a position counts as much as it weighs, instead of 1.
    """

    def __init__(self, ranks: Tensor, max_rank: int, weights: Tensor | None = None):
        num_positions, self.depth = ranks.shape
        # An integer, unless positions are weighed.
        self.num_positions = num_positions if weights is None else float(weights.sum())
        self.max_rank = max_rank
        self._width = max_rank + 1
        # A tree of prefixes, level by level: a key is `index of the parent * width + rank`. Keys
        # ascend, so that the paths of a level are in lexicographic order.
        self._keys: list[Tensor] = []
        self._counts: list[Tensor] = []
        marginals: list[Tensor] = []
        place = torch.zeros(num_positions, dtype=torch.int64)  # in the level above
        here = torch.arange(num_positions)  # the positions whose path goes on so far
        for column in ranks.long().unbind(dim=1):
            known = column <= max_rank
            weighed = None if weights is None else weights[known]
            marginals.append(column[known].bincount(weighed, minlength=self._width))
            kept = column[here] <= max_rank
            here = here[kept]
            key = place[kept] * self._width + column[here]
            keys, place = key.unique(return_inverse=True)
            weighed = None if weights is None else weights[here]
            self._keys.append(keys)
            self._counts.append(place.bincount(weighed, minlength=len(keys)))
        self.marginals = torch.stack(marginals)

    def count(self, path: Path) -> float:
        """Count (or weigh) the positions at which a path of at most D ranks holds."""
        index = 0
        for rank, keys in zip(path, self._keys, strict=False):
            key = index * self._width + rank
            index = int(torch.searchsorted(keys, key))
            if rank >= self._width or index == len(keys) or int(keys[index]) != key:
                return 0
        return self._counts[len(path) - 1][index].item()

    def most_frequent(self, num_paths: int) -> list[Path]:
        """Return the most frequent paths, or all that ever held: the best trees of 1, 2, ... nodes.

        Of equally frequent ones the shorter comes first, then the lower ranks: so the beginnings of
        a path always stand before it.
        """
        order = torch.cat(self._counts).argsort(descending=True, stable=True)[:num_paths]
        starts = [0, *accumulate(len(keys) for keys in self._keys)]
        levels = torch.bucketize(order, torch.tensor(starts[1:]), right=True).tolist()
        return [
            self._path(level, place - starts[level])
            for level, place in zip(levels, order.tolist(), strict=True)
        ]

    def _path(self, level: int, index: int) -> Path:
        ranks: list[int] = []
        for keys in reversed(self._keys[: level + 1]):
            index, rank = divmod(int(keys[index]), self._width)
            ranks.append(rank)
        return tuple(reversed(ranks))


def product_paths(
    marginals: Sequence[Sequence[float]], num_positions: float, num_paths: int
) -> list[Path]:
    """Return the paths of the largest products of marginal frequencies, best first.

    That is how Medusa chooses its tree (Cai et al. 2024, section 2.3.3): as if the ranks of a path
    were independent. `marginals` is [D, ranks]; ties are broken as `PathCounts.most_frequent` does.
    Products of zero are left out, so that there may be fewer paths.
    """
    depth = len(marginals)
    # The ranks of each depth, most frequent first, and how often they held.
    ordered = [
        sorted((-count, rank) for rank, count in enumerate(row) if count) for row in marginals
    ]
    found: list[Path] = []
    # (-score, length, path, score of the path above, place of the last rank in its order). Scores
    # are the products times S^D: of counts they are integers, so that what is equal compares equal.
    heap: list[tuple[float, int, Path, float, int]] = []
    divided = floordiv if isinstance(num_positions, int) else truediv

    def push(above: Path, score: float, place: int) -> None:
        level = len(above)
        if level < depth and place < len(ordered[level]):
            minus_count, rank = ordered[level][place]
            own = divided(score, num_positions) * minus_count
            heapq.heappush(heap, (own, level + 1, (*above, rank), score, place))

    push((), num_positions**depth, 0)
    while heap and len(found) < num_paths:
        own, _, path, score, place = heapq.heappop(heap)
        found.append(path)
        push(path, -own, 0)
        push(path[:-1], score, place + 1)
    return found


def expected_block_efficiency(counts: Sequence[float], num_positions: float) -> list[float]:
    """Return tau of the trees of the first 1, 2, ... paths, by how often each path holds.

    It is the mean over the positions as they are weighed: unweighed, over all positions of the
    text, and not over the step starts of decoding, which crowd behind hard tokens.
    """
    return [1 + total / num_positions for total in accumulate(counts)]


def calibration(counts: PathCounts, max_nodes: int) -> dict[str, Any]:
    """Return what a calibration file holds of trees of up to `max_nodes` nodes.

    `joint` are the most frequent paths and `product` those of `product_paths`, in order; both with
    how often each path holds jointly, and with tau of the trees of the first 1, 2, ... of them.
    """
    marginals = counts.marginals.tolist()
    trees = {
        "joint": counts.most_frequent(max_nodes),
        "product": product_paths(marginals, counts.num_positions, max_nodes),
    }
    found: dict[str, Any] = {
        "num_positions": counts.num_positions,
        "depth": counts.depth,
        "max_rank": counts.max_rank,
    }
    for name, paths in trees.items():
        held = [counts.count(path) for path in paths]
        found[name] = {
            "paths": paths,
            "counts": held,
            "expected_block_efficiency": expected_block_efficiency(held, counts.num_positions),
        }
    return {**found, "marginals": marginals}
