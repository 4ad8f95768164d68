"""Candidate trees: what one verifier forward looks at."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

ROOT = 0


@dataclass(frozen=True)
class CandidateTree:
    """N draft tokens that hang from the last committed token (node 0).

    `token_ids[i]` and `parents[i]` describe node i; `parents[0] == -1` and `parents[i] < i`.
    Siblings stand in the order in which they were drawn. Both tuples have N + 1 entries.
    """

    token_ids: tuple[int, ...]  # [N+1]
    parents: tuple[int, ...]  # [N+1]

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.parents) >= 1
        assert self.parents[0] == -1
        assert all(0 <= parent < node for node, parent in enumerate(self.parents) if node > 0)

    @classmethod
    def chain(cls, root: int, draft_ids: Sequence[int]) -> "CandidateTree":
        """Make the tree in which each draft token follows the one before it."""
        return cls((root, *draft_ids), tuple(range(-1, len(draft_ids))))

    @property
    def num_draft_tokens(self) -> int:
        """N: the root is not a draft token."""
        return len(self.token_ids) - 1

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:  # [N+1]
        """Edges between the root and each node."""
        if self.is_chain:
            return tuple(range(len(self.parents)))
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:  # [N+1] of node lists
        """The children of each node, in drawing order."""
        if self.is_chain:
            return (*((node,) for node in range(1, len(self.parents))), ())
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    def path_to(self, node: int) -> list[int]:
        """Return the nodes between the root, without it, and a node, with it."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def ancestors(self) -> list[list[bool]]:  # [N+1][N+1]
        """Row i marks node i and everything between it and the root: what node i may attend to.

        For the tree  0 -> 1 -> 3
                        -> 2          this is    0: x . . .
                                                 1: x x . .
                                                 2: x . x .
                                                 3: x x . x
        """
        rows: list[list[bool]] = []
        for node, parent in enumerate(self.parents):
            row = list(rows[parent]) if node > 0 else [False] * len(self.parents)
            row[node] = True
            rows.append(row)
        return rows

    def pruned(
        self, max_depth: int, end_ids: frozenset[int], ends: frozenset[int] = frozenset()
    ) -> tuple["CandidateTree", list[int]]:
        """Drop what could never be emitted: nodes below `max_depth`, an end token or one of `ends`.

        `ends` are nodes at which the text ends for what stands before them, too: stop strings.
        Whether a node stays depends on its ancestors alone, never on its own token, so pruning a
        sampled tree leaves the text's distribution as it is. Returns the tree and, for each of
        its nodes, the number the node had here.
        """
        if max(self.depths) <= max_depth and not ends and end_ids.isdisjoint(self.token_ids):
            return self, list(range(len(self.parents)))
        kept: list[int] = []
        renumbered: dict[int, int] = {-1: -1}
        for node, parent in enumerate(self.parents):
            below_end = parent > ROOT and (parent in ends or self.token_ids[parent] in end_ids)
            if parent in renumbered and not below_end and self.depths[node] <= max_depth:
                renumbered[node] = len(kept)
                kept.append(node)
        if len(kept) == len(self.parents):
            return self, kept
        token_ids = tuple(self.token_ids[node] for node in kept)
        return CandidateTree(token_ids, tuple(renumbered[self.parents[n]] for n in kept)), kept
