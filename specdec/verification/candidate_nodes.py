"""The nodes at which candidates were drawn, side by side, so that rules need no loop over nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.shown import Shown, rows_of
from specdec.core.values import Proposal

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class CandidateNodes:
    """The I nodes of a batch at which candidates were drawn, up to K at each, and p and q there.

    Of deterministic candidates q is the sum of the point masses: 1 for each candidate.
    """

    owners: tuple[int, ...]  # [I]: whose tree they belong to, ascending
    numbers: tuple[int, ...]  # [I]: where they stand in that tree, ascending
    token_ids: Tensor  # [I, K] int64: in drawing order; where there are fewer, one of them
    counts: tuple[int, ...]  # [I]: how many were drawn
    p: Tensor  # [I, V]
    q: Tensor  # [I, V]

    @classmethod
    def of(cls, shown: Shown) -> "CandidateNodes":
        """Collect the nodes with children and, of filtered chains, those of withheld tokens."""
        found = [_nodes_of(proposal) for proposal in shown.proposals]
        where = [(owner, node) for owner, nodes in enumerate(found) for node in nodes]
        tokens = [ids for nodes in found for ids in nodes.values()]
        counts = [max(1, len(ids)) for ids in tokens]
        width = max(counts, default=0)
        padded = [[*ids, *(ids[:1] or [0]) * (width - len(ids))] for ids in tokens]
        ids = on_device(padded, shown.probs.device, torch.int64)
        ids, p = ids.view(len(where), width), shown.after(where)
        q = [
            rows_of(proposal.draft_probs, [*nodes])
            for proposal, nodes in zip(shown.proposals, found, strict=True)
            if nodes and proposal.draft_probs is not None
        ]
        joined = torch.cat(q) if len(q) > 1 else q[0] if q else _point_masses(p, ids)
        owners, numbers = zip(*where, strict=True) if where else ((), ())
        return cls(owners, numbers, ids, tuple(counts), p, joined)

    def at(self, places: Sequence[int]) -> "CandidateNodes":
        """Return the same for some of the nodes."""
        owners, numbers, counts = (
            tuple(each[place] for place in places)
            for each in (self.owners, self.numbers, self.counts)
        )
        ids, p, q = (rows_of(each, places) for each in (self.token_ids, self.p, self.q))
        return CandidateNodes(owners, numbers, ids[:, : max(counts)], counts, p, q)

    @property
    def width(self) -> int:
        """K: the most candidates at one node."""
        return self.token_ids.shape[1]

    @cached_property
    def places(self) -> dict[tuple[int, int], int]:
        """Where a request's node stands among these."""
        pairs = zip(self.owners, self.numbers, strict=True)
        return {pair: place for place, pair in enumerate(pairs)}

    def by_request(self, values: Sequence[RowT], num_requests: int) -> list[dict[int, RowT]]:
        """Sort what is known of each node by request, and there by node."""
        found: list[dict[int, RowT]] = [{} for _ in range(num_requests)]
        for owner, number, value in zip(self.owners, self.numbers, values, strict=True):
            found[owner][number] = value
        return found

    def drawn(self, number: int) -> Tensor | None:  # [I, 1] bool
        """Mark the nodes at which a `number`-th candidate was drawn; None: at all of them."""
        if all(count > number for count in self.counts):
            return None
        rows = [[count > number] for count in self.counts]
        return on_device(rows, self.token_ids.device)


def _nodes_of(proposal: Proposal) -> dict[int, list[int]]:
    """Return the candidates of each node that has some; those withheld are not known."""
    tree = proposal.tree
    found = {
        node: [tree.token_ids[child] for child in children]
        for node, children in enumerate(tree.children)
        if children
    }
    return {**found, len(tree.parents) - 1: []} if proposal.withheld else found


def _point_masses(p: Tensor, token_ids: Tensor) -> Tensor:  # [I, V], [I, K] -> [I, V]
    return torch.zeros_like(p).scatter(1, token_ids, 1.0)
