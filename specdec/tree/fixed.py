"""Trees whose shape is known beforehand: which child of which child, whatever the tokens are."""

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


class FixedTree:
    """A tree of the given paths; a subclass says what the k-th child of a node is.

    Every beginning of a path must be among them.
    """

    draw: Draw

    def __init__(self, nodes: Sequence[Path], min_confidence: float = 0.0):
        require_number("tree.min_confidence", min_confidence, 0.0, 1.0)
        self.nodes = sorted(nodes, key=lambda path: (len(path), path))
        self.num_nodes = len(self.nodes)
        self.max_depth = max(map(len, self.nodes))
        self.min_confidence = min_confidence
        self._levels = [_LevelShape.of(self.nodes, d) for d in range(1, self.max_depth + 1)]

    @property
    def may_stop(self) -> bool:
        """Only where confidence is asked for."""
        return self.min_confidence > 0

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        """Choose the candidates at `depth`."""
        shape = self._levels[depth - 1].on(draft_probs.device)
        found = self.candidates(draft_probs, self._levels[depth - 1].width, streams)
        return Level(
            found.token_ids[:, shape.parents, shape.numbers],
            shape.parents.expand(len(draft_probs), -1),
            shape.frontier.expand(len(draft_probs), -1),
            None if found.there is None else found.there[:, shape.parents, shape.numbers],
        )

    def candidates(
        self, draft_probs: Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        """Return the first `width` children of each node, from the laws after them [B, F, V]."""
        raise NotImplementedError

    def kept(self, levels: Sequence[Level], there: Tensor) -> Tensor:
        """All candidates stay."""
        return there


class _LevelShape(NamedTuple):
    parents: Tensor  # [C], into the frontier above
    numbers: Tensor  # [C]: which child of its parent
    frontier: Tensor  # [F']: those with children
    width: int

    @classmethod
    def of(cls, nodes: Sequence[Path], depth: int) -> "_LevelShape":
        inner = {path[:-1] for path in nodes}
        above = [path for path in [(), *nodes] if len(path) == depth - 1 and path in inner]
        here = [path for path in nodes if len(path) == depth]
        return cls(
            torch.tensor([above.index(path[:-1]) for path in here]),
            torch.tensor([path[-1] for path in here]),
            torch.tensor(
                [place for place, path in enumerate(here) if path in inner], dtype=torch.int64
            ),
            1 + max(path[-1] for path in here),
        )

    def on(self, device: torch.device) -> "_LevelShape":
        parents, numbers = self.parents.to(device), self.numbers.to(device)
        return _LevelShape(parents, numbers, self.frontier.to(device), self.width)
