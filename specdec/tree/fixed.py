"""Trees whose shape is known beforehand: which child of which child, whatever the tokens are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.errors import require_number
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw, Level

# The numbers of the children on the way down from the root: (2, 0) is the first child of the third.
Path = tuple[int, ...]


class Candidates(NamedTuple):
    """The first K candidates after each of F nodes."""

    token_ids: Tensor  # [B, F, K] int64
    there: Tensor | None = None  # [B, F, K] bool; None: all of them


class FixedTree(ABC):
    """A tree of the given paths; a subclass says what the k-th child of a node is.

    Every beginning of a path must be among them.
    """

    draw: Draw

    def __init__(self, nodes: Sequence[Path], min_confidence: float = 0.0):
        require_confidence(min_confidence)
        self.nodes = sorted(nodes, key=lambda path: (len(path), path))
        self.num_nodes = len(self.nodes)
        self.max_depth = max(map(len, self.nodes))
        self.min_confidence = min_confidence
        self._placed: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}
        self._levels = [_LevelShape.of(self.nodes, d) for d in range(1, self.max_depth + 1)]

    @property
    def parents(self) -> list[int]:
        """The inner nodes of each level."""
        inner = {path[:-1] for path in self.nodes}
        return [sum(len(path) == depth for path in inner) for depth in range(self.max_depth)]

    @property
    def may_stop(self) -> bool:
        """Only where confidence is asked for."""
        return self.min_confidence > 0

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        """Choose the candidates at `depth`."""
        shape = self._levels[depth - 1]
        found = self.candidates(draft_probs, shape.width, streams)
        there = None if found.there is None else shape.chosen(found.there)
        parents, frontier = self._places(depth, len(draft_probs), draft_probs.device)
        chosen = shape.chosen(found.token_ids)
        return Level(chosen, parents, frontier, there, shape=shape.numbers)

    def _places(self, depth: int, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return parents [B, C] and frontier [B, F']; made once, since every step wants them."""
        key = (depth, num_rows, device)
        if key not in self._placed:
            shape = self._levels[depth - 1]
            self._placed[key] = (
                shape.parents.to(device).expand(num_rows, -1),
                shape.frontier.to(device).expand(num_rows, -1),
            )
        return self._placed[key]

    @abstractmethod
    def candidates(
        self, draft_probs: Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        """Return the first `width` children of each node, given `draft_probs` [B, F, V]."""

    def kept(self, levels: Sequence[Level], there: Tensor) -> Tensor:
        """All candidates stay."""
        return there


def is_chain(tree: object) -> bool:
    """Whether a tree policy never grows siblings, as far as its shape is known beforehand."""
    return isinstance(tree, FixedTree) and tree.num_nodes == tree.max_depth


def require_confidence(min_confidence: object) -> None:
    """Refuse what is no probability that the likeliest token needs for drafting to go on."""
    require_number("min_confidence", min_confidence, 0.0, 1.0)


class _LevelShape(NamedTuple):
    """C nodes at one depth, below the F nodes above that have children."""

    parents: Tensor  # [C], into the frontier above
    picks: Tensor  # [C]: which child of its parent
    frontier: Tensor  # [F']: those with children
    numbers: tuple[Path, Path]  # parents and frontier
    width: int  # K: the most children of one node
    is_complete: bool  # whether every node of the frontier above has all K

    @classmethod
    def of(cls, nodes: Sequence[Path], depth: int) -> "_LevelShape":
        inner = {path[:-1] for path in nodes}
        above = [path for path in [(), *nodes] if len(path) == depth - 1 and path in inner]
        here = [path for path in nodes if len(path) == depth]
        parents = tuple(above.index(path[:-1]) for path in here)
        frontier = tuple(place for place, path in enumerate(here) if path in inner)
        width = 1 + max(path[-1] for path in here)
        return cls(
            torch.tensor(parents),
            torch.tensor([path[-1] for path in here]),
            torch.tensor(frontier, dtype=torch.int64),
            (parents, frontier),
            width,
            len(here) == len(above) * width,
        )

    def chosen(self, candidates: Tensor) -> Tensor:  # [B, F, K] -> [B, C]
        """Leave out the candidates that this tree does not have."""
        if self.is_complete:
            return candidates.flatten(1)
        return candidates[:, self.parents.to(candidates.device), self.picks.to(candidates.device)]
