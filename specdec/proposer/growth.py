"""Grow candidate trees level by level: what every proposer with a draft distribution shares."""

from collections.abc import Callable, Generator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.protocols import TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Level, Proposal


class Frontier(NamedTuple):
    """The F candidates of each request whose laws come next."""

    token_ids: Tensor  # [B, F] int64
    parents: Tensor  # [B, F] int64: their places in the frontier before; the root's alone at first
    is_whole_level: bool  # whether there are no candidates beside them


# Yields the logits [B, F, V] after the F nodes of a frontier, first after the root alone, and is
# sent the next frontier.
LogitSource = Generator[Tensor, Frontier, None]


def propose_where(
    ready: Callable[[Context], bool],
    contexts: Sequence[Context],
    grown: Callable[[Sequence[Context]], list[Proposal]],
) -> list[Proposal]:
    """Grow trees for the requests that are ready and have tokens left; the others get none."""
    able = [context for context in contexts if context.max_depth > 0 and ready(context)]
    trees = zip(able, grown(able) if able else [], strict=True)
    proposals = {context.row: proposal for context, proposal in trees}
    return [
        proposals.get(c.row) or Proposal(CandidateTree.chain(c.token_ids[-1], ())) for c in contexts
    ]


def grow(
    policy: TreePolicy,
    contexts: Sequence[Context],
    source: LogitSource,
    temperature: float | None = None,
) -> list[Proposal]:
    """Grow one tree per request, each at most as deep as it can use.

    Sampled candidates are drawn from the law that the text is sampled with (same top-k, top-p,
    min-p) at `temperature`, by default the text's. Deterministic ones are chosen by the draft's
    probabilities at `temperature`, by default 1 and never 0, where all but one would be zero.
    """
    depth = min(policy.max_depth, max(context.max_depth for context in contexts))
    streams = [context.draft_stream for context in contexts]
    sampled = policy.draw is not Draw.DETERMINISTIC
    sampling = contexts[0].sampling.at(temperature) if sampled else Sampling(temperature or 1.0)
    logits = next(source)
    growth = Growth(policy.min_confidence, [one.max_depth for one in contexts], logits.device)
    level: Level | None = None
    for number in range(1, depth + 1):
        laws = sampling.warp(logits)  # [B, F, V]
        level = policy.expand(level, number, laws, streams)
        growth.add(level, laws if sampled else None, logits)
        if number == depth or (policy.may_stop and not growth.goes_on()):
            break
        logits = source.send(growth.frontier)
    return growth.proposals(policy, contexts)


LEFT_OUT, WITHHELD, SHOWN = range(3)


class Growth:
    """The nodes of growing trees, numbered level by level, on the device until the end."""

    def __init__(self, min_confidence: float, max_depths: Sequence[int], device: torch.device):
        self._min_confidence = min_confidence
        self._max_depths = max_depths  # of each request
        self._levels: list[Level] = []
        self._parents: list[Tensor] = []  # per level [B, C]: node numbers
        self._there: list[Tensor] = []  # per level [B, C]: there, and all above it too
        # Per level [B]: whether the request wanted its laws; neighbours may want more levels.
        self._calls: list[Tensor] = []
        self._laws: list[Tensor] = []  # per level [B, F, V]
        self._asked: list[Tensor] = []  # per level [B, F]: the nodes after which those laws are
        self._num_nodes = 1
        # Of the frontier, [B, F]: node numbers, and which may have children; at first the root.
        self._nodes = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._open = torch.ones(1, 1, dtype=torch.bool, device=device)
        self.frontier: Frontier

    def add(self, level: Level, laws: Tensor | None, logits: Tensor) -> None:
        """Hang a level below the last one's frontier, whose laws it was chosen from."""
        num_rows = len(logits)
        nodes, is_open = self._nodes.expand(num_rows, -1), self._open.expand(num_rows, -1)
        depth = 1 + len(self._levels)
        if depth > min(self._max_depths):
            usable = [[depth <= deepest] for deepest in self._max_depths]
            is_open = is_open & torch.tensor(usable, device=is_open.device)
        self._calls.append(is_open.any(dim=-1))
        if self._min_confidence > 0:
            is_open = is_open & (_confidence(logits) >= self._min_confidence)
        there = is_open.gather(1, level.parents)
        there = there if level.there is None else there & level.there
        shown = there if level.shown is None else there & level.shown
        if laws is not None:
            self._laws.append(laws if level.draft_probs is None else level.draft_probs)
            self._asked.append(nodes)
        self._levels.append(level)
        self._parents.append(nodes.gather(1, level.parents))
        self._there.append(there)
        self._open = shown.gather(1, level.frontier)
        self._nodes = self._num_nodes + level.frontier
        self._num_nodes += level.token_ids.shape[1]
        self.frontier = Frontier(
            level.token_ids.gather(1, level.frontier),
            level.parents.gather(1, level.frontier),
            level.frontier.shape == level.token_ids.shape,
        )

    def goes_on(self) -> bool:
        """Whether any request has a node that may have children; waits for the device."""
        return bool(self._open.any())

    def proposals(self, policy: TreePolicy, contexts: Sequence[Context]) -> list[Proposal]:
        """Assemble the trees on the host."""
        there = policy.kept(self._levels, torch.cat(self._there, dim=1))
        shown = [
            torch.ones_like(t) if level.shown is None else level.shown
            for level, t in zip(self._levels, self._there, strict=True)
        ]
        parts = [
            torch.cat([level.token_ids for level in self._levels], dim=1),
            torch.cat(self._parents, dim=1),
            there.long() * (1 + torch.cat(shown, dim=1).long()),
            torch.stack(self._calls).sum(dim=0)[:, None],
            *self._asked,
        ]
        ends = [0, *accumulate(part.shape[1] for part in parts[:4])]
        packed = torch.cat(parts, dim=1).tolist()  # the only wait for the device
        laws = torch.cat(self._laws, dim=1) if self._laws else [None] * len(contexts)
        return [
            _proposal(
                policy.draw, context, _Facts(*(row[a:b] for a, b in pairwise([*ends, None]))), rows
            )
            for context, row, rows in zip(contexts, packed, laws, strict=True)
        ]


class _Facts(NamedTuple):
    """What one request's tree is made from; entry i is about node i + 1 of the whole growth."""

    token_ids: list[int]
    parents: list[int]
    states: list[int]  # LEFT_OUT, WITHHELD or SHOWN
    num_calls: list[int]  # one number: what it would have cost alone
    asked: list[int]  # the nodes after which the laws are


def _proposal(draw: Draw, context: Context, facts: _Facts, laws: Tensor | None) -> Proposal:
    nodes = [0, *(node for node, state in enumerate(facts.states, start=1) if state == SHOWN)]
    place = {node: number for number, node in enumerate(nodes)}
    tree = CandidateTree(
        (context.token_ids[-1], *(facts.token_ids[node - 1] for node in nodes[1:])),
        (-1, *(place[facts.parents[node - 1]] for node in nodes[1:])),
    )
    calls = facts.num_calls[0]
    if laws is None:
        return Proposal(tree, draw, None, calls)
    return Proposal(tree, draw, _rows(laws, facts.asked, nodes), calls, WITHHELD in facts.states)


def _rows(laws: Tensor, asked: Sequence[int], nodes: Sequence[int]) -> Tensor:  # [M, V]
    """Return the law after each node, up to the last that has one."""
    row_of = {node: row for row, node in enumerate(asked)}
    num_rows = 1 + max(number for number, node in enumerate(nodes) if node in row_of)
    # A node in between without a law has no children either: nobody looks at what stands there.
    rows = [row_of.get(node, 0) for node in nodes[:num_rows]]
    return laws[:num_rows] if rows == list(range(num_rows)) else laws[rows]


def _confidence(logits: Tensor) -> Tensor:  # [B, F, V] -> [B, F]
    """Return the largest probability of the draft's law at temperature 1."""
    return logits.float().softmax(dim=-1).amax(dim=-1)


class FrontierCells:
    """Where frontiers stand in a cache that holds each row's text and then one cell for each node.

    Row b has `lengths[b]` cells of text, the root included.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self._lengths = torch.tensor(lengths, device=device)
        self._longest = max(lengths)
        self._depth = 0
        # [B, F, n]: which of the n cells behind the text each node of the last frontier sees.
        self._seen = torch.zeros(len(lengths), 1, 0, dtype=torch.bool, device=device)
        self.is_chain = True  # each cell so far is the only candidate below the one before it

    def add(self, frontier: Frontier) -> tuple[Tensor | None, Tensor | None]:
        """Return positions [B, F] and `attend` [B, F, L] as `CausalLM.forward` takes them."""
        num_rows, width = frontier.token_ids.shape
        self._depth += 1
        self.is_chain = self.is_chain and frontier.is_whole_level and width == 1
        above = frontier.parents[..., None].expand(-1, -1, self._seen.shape[-1])
        own = torch.eye(width, dtype=torch.bool, device=above.device).expand(num_rows, -1, -1)
        self._seen = torch.cat([self._seen.gather(1, above), own], dim=-1)
        if self.is_chain:
            return None, None
        return self._positions(width), self._attend()

    def _positions(self, width: int) -> Tensor:
        return (self._lengths[:, None] - 1 + self._depth).expand(-1, width)

    def _attend(self) -> Tensor:
        num_cells = self._seen.shape[-1]
        cell = torch.arange(self._longest + num_cells, device=self._lengths.device)
        behind = cell - self._lengths[:, None]  # [B, L]: the cell's number behind the text
        number = behind.clamp(0, num_cells - 1)[:, None].expand(-1, self._seen.shape[1], -1)
        is_candidate = ((behind >= 0) & (behind < num_cells))[:, None]
        return (behind < 0)[:, None] | (is_candidate & self._seen.gather(2, number))
