"""The nodes at which candidates were drawn, side by side, so that rules need no loop over nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.values import Proposal


@dataclass(frozen=True)
class CandidateNodes:
    """The I nodes at which candidates were drawn, up to K at each, and p and q there.

    Of deterministic candidates q is the sum of the point masses: 1 for each candidate.
    """

    numbers: tuple[int, ...]  # [I]: where they stand in the tree
    token_ids: Tensor  # [I, K] int64: in drawing order; where there are fewer, one of them
    counts: tuple[int, ...]  # [I]: how many were drawn
    p: Tensor  # [I, V]
    q: Tensor  # [I, V]

    @classmethod
    def of(cls, proposal: Proposal, verifier_probs: Tensor) -> "CandidateNodes":
        """Collect the nodes with children and, of a filtered chain, that of the withheld token."""
        tree, q = proposal.tree, proposal.draft_probs
        nodes = [node for node, children in enumerate(tree.children) if children]
        tokens = [[tree.token_ids[child] for child in tree.children[node]] for node in nodes]
        counts = [len(each) for each in tokens]
        if proposal.withheld:
            nodes.append(len(tree.parents) - 1)
            tokens.append([])
            counts.append(1)
        width = max(counts, default=0)
        padded = [[*each, *(each[:1] or [0]) * (width - len(each))] for each in tokens]
        ids = torch.tensor(padded, dtype=torch.int64, device=verifier_probs.device)
        ids, p = ids.view(len(nodes), width), _rows(verifier_probs, nodes)
        q = torch.zeros_like(p).scatter(1, ids, 1.0) if q is None else _rows(q, nodes)
        return cls(tuple(nodes), ids, tuple(counts), p, q)

    def at(self, places: Sequence[int]) -> "CandidateNodes":
        """Return the same for some of the nodes."""
        numbers, counts = zip(*((self.numbers[i], self.counts[i]) for i in places), strict=True)
        ids, p, q = (_rows(each, places) for each in (self.token_ids, self.p, self.q))
        return CandidateNodes(numbers, ids[:, : max(counts)], counts, p, q)

    @property
    def width(self) -> int:
        """K: the most candidates at one node."""
        return self.token_ids.shape[1]

    def drawn(self, number: int) -> Tensor | None:  # [I, 1] bool
        """Mark the nodes at which a `number`-th candidate was drawn; None: at all of them."""
        if all(count > number for count in self.counts):
            return None
        rows = [[count > number] for count in self.counts]
        return torch.tensor(rows, device=self.token_ids.device)


def _rows(matrix: Tensor, rows: Sequence[int]) -> Tensor:
    """Select rows; neighbours without a copy."""
    first = rows[0] if rows else 0
    if list(rows) == list(range(first, first + len(rows))):
        return matrix[first : first + len(rows)]
    return matrix[list(rows)]
