"""The levels of growing trees, on the device until the end, and the proposals that they become."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.protocols import TreePolicy
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Level, LevelShape, Proposal


class Frontier(NamedTuple):
    """The F candidates of each request whose distributions come next."""

    token_ids: Tensor  # [B, F] int64
    parents: Tensor  # [B, F] int64: their places in the frontier before; the root's alone at first
    is_whole_level: bool  # whether there are no candidates beside them


LEFT_OUT, WITHHELD, SHOWN = range(3)


class Levels:
    """The levels of growing trees, on the device until the end."""

    def __init__(self, max_depths: Sequence[int]):
        self._max_depths = max_depths  # of each request
        self._levels: list[Level] = []
        self._draft_probs: list[Tensor] = []  # per level [B, F, V]
        self._confident: list[Tensor | None] = []  # per level [B, F]; None: all of them

    def add(self, level: Level, draft_probs: Tensor | None, confident: Tensor | None) -> None:
        """Hang a level below the last one's frontier, chosen from `draft_probs` [B, F, V].

        `confident` [B, F] marks the nodes that may have children; None: all of them.
        """
        self._levels.append(level)
        if draft_probs is not None:
            self._draft_probs.append(
                draft_probs if level.draft_probs is None else level.draft_probs
            )
        self._confident.append(confident)

    @property
    def frontier(self) -> Frontier:
        """The nodes of the last level that may get children."""
        level = self._levels[-1]
        token_ids, parents = level.token_ids, level.parents
        if level.frontier.shape == token_ids.shape:
            return Frontier(token_ids, parents, is_whole_level=True)
        token_ids, parents = (each.gather(1, level.frontier) for each in (token_ids, parents))
        return Frontier(token_ids, parents, is_whole_level=False)

    def goes_on(self) -> bool:
        """Whether any request has a node that may have children; waits for the device."""
        return bool(self._states()[-1].open.any())

    def proposals(self, policy: TreePolicy, contexts: Sequence[Context]) -> list[Proposal]:
        """Assemble the trees on the host."""
        draft_probs = (
            torch.cat(self._draft_probs, dim=1).unbind()
            if self._draft_probs
            else [None] * len(contexts)
        )
        shapes = self._static_shapes()
        if shapes is not None:
            return self._static_proposals(policy.draw, shapes, contexts, draft_probs)
        return [
            _proposal(policy.draw, context, on_host, rows)
            for context, on_host, rows in zip(
                contexts, self._on_host(policy), draft_probs, strict=True
            )
        ]

    def _static_shapes(self) -> tuple[LevelShape, ...] | None:
        """Return the levels' shapes if they are the same for all requests, and wholly there."""
        shapes: list[LevelShape] = []
        for level, confident in zip(self._levels, self._confident, strict=True):
            if level.there is not None or level.shown is not None or confident is not None:
                return None
            if level.shape is None:
                return None
            shapes.append(level.shape)
        return tuple(shapes)

    def _static_proposals(
        self,
        draw: Draw,
        shapes: tuple[LevelShape, ...],
        contexts: Sequence[Context],
        draft_probs: Sequence[Tensor | None],
    ) -> list[Proposal]:
        """Number the nodes on the host; only their tokens come from the device."""
        parents, rows = _numbered(shapes)
        token_ids = torch.cat([level.token_ids for level in self._levels], dim=1).tolist()
        proposals: list[Proposal] = []
        for context, ids, probs in zip(contexts, token_ids, draft_probs, strict=True):
            tree = CandidateTree((context.token_ids[-1], *ids), parents)
            calls = min(len(shapes), context.max_depth)
            probs = probs if probs is None or rows is None else probs[list(rows)]
            proposals.append(Proposal(tree, draw, probs, calls))
        return proposals

    def _on_host(self, policy: TreePolicy) -> list["_OnHost"]:
        """Number the nodes on the device, and fetch everything at once."""
        states = self._states()
        there = policy.kept(self._levels, torch.cat([state.there for state in states], dim=1))
        shown = torch.cat([state.shown for state in states], dim=1)
        parts = [
            torch.cat([level.token_ids for level in self._levels], dim=1),
            torch.cat([state.parents for state in states], dim=1),
            there.long() * torch.where(shown, SHOWN, WITHHELD),
            torch.stack([state.wanted for state in states]).sum(dim=0)[:, None],
            torch.cat([state.expanded for state in states], dim=1),
        ]
        ends = [0, *accumulate(part.shape[1] for part in parts)]
        packed = torch.cat(parts, dim=1).tolist()
        return [_OnHost(*(row[a:b] for a, b in pairwise(ends))) for row in packed]

    def _states(self) -> list["_State"]:
        """Follow what is there, and what may go on, from the root downwards."""
        states: list[_State] = []
        num_rows, device = len(self._levels[0].token_ids), self._levels[0].token_ids.device
        nodes = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        is_open = torch.ones_like(nodes, dtype=torch.bool)
        num_nodes = 1
        pairs = zip(self._levels, self._confident, strict=True)
        for depth, (level, confident) in enumerate(pairs, start=1):
            if depth > min(self._max_depths):  # neighbours in the batch may want more levels
                usable = [[depth <= deepest] for deepest in self._max_depths]
                is_open = is_open & on_device(usable, device)
            sure = is_open if confident is None else is_open & confident
            there = sure.gather(1, level.parents)
            there = there if level.there is None else there & level.there
            shown = there if level.shown is None else there & level.shown
            parents, wanted = nodes.gather(1, level.parents), is_open.any(dim=-1)
            below = shown.gather(1, level.frontier)
            states.append(_State(nodes, wanted, parents, there, shown, below))
            nodes, is_open = num_nodes + level.frontier, below
            num_nodes += level.token_ids.shape[1]
        return states


class _State(NamedTuple):
    """One level of B requests: C candidates below F nodes that were asked about."""

    expanded: Tensor  # [B, F]: numbers of those nodes
    wanted: Tensor  # [B] bool: whether any of them may have children
    parents: Tensor  # [B, C]: numbers of nodes
    there: Tensor  # [B, C] bool: a candidate, as everything above it is
    shown: Tensor  # [B, C] bool: and submitted
    open: Tensor  # [B, F'] bool: of the next frontier, what may have children


class _OnHost(NamedTuple):
    """What one request's tree is made from; entry i is about node i + 1 of the whole growth."""

    token_ids: list[int]
    parents: list[int]
    states: list[int]  # LEFT_OUT, WITHHELD or SHOWN
    num_calls: list[int]  # one number: what it would have cost alone
    expanded: list[int]  # the nodes after which the distributions are


@lru_cache(maxsize=256)  # every step of a run asks for the same few
def _numbered(shapes: tuple[LevelShape, ...]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the parent of each node [N+1], and its distribution's row, as `_rows_of` does."""
    parents, expanded, above = [-1], list[int](), [0]
    for places, frontier in shapes:
        first = len(parents)
        expanded += above
        parents += [above[place] for place in places]
        above = [first + place for place in frontier]
    return tuple(parents), _rows_of(expanded, range(len(parents)))


def _proposal(
    draw: Draw, context: Context, on_host: _OnHost, draft_probs: Tensor | None
) -> Proposal:
    nodes = [0, *(node for node, state in enumerate(on_host.states, start=1) if state == SHOWN)]
    place = {node: number for number, node in enumerate(nodes)}
    tree = CandidateTree(
        (context.token_ids[-1], *(on_host.token_ids[node - 1] for node in nodes[1:])),
        (-1, *(place[on_host.parents[node - 1]] for node in nodes[1:])),
    )
    calls = on_host.num_calls[0]
    if draft_probs is None:
        return Proposal(tree, draw, None, calls)
    rows = _rows_of(on_host.expanded, nodes)
    draft_probs = draft_probs if rows is None else draft_probs[list(rows)]
    return Proposal(tree, draw, draft_probs, calls, WITHHELD in on_host.states)


def _rows_of(expanded: Sequence[int], nodes: Sequence[int]) -> tuple[int, ...] | None:  # [M]
    """Return which distribution stands after each node, up to the last one; None: all, in order."""
    row_of = {node: row for row, node in enumerate(expanded)}
    num_rows = 1 + max(number for number, node in enumerate(nodes) if node in row_of)
    # A node in between without a distribution has no children either: nobody looks at what stands
    # there.
    rows = tuple(row_of.get(node, 0) for node in nodes[:num_rows])
    return None if rows == tuple(range(len(expanded))) else rows
