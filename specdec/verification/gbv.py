"""Greedy multi-path block verification: one of several chains is chosen, and block-verified."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.on_device import on_device
from specdec.core.on_host import together
from specdec.core.randomness import Stream
from specdec.core.shown import Shown, rows_of
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.block import CHAIN_FORM, shares_along
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.last_token import LastToken
from specdec.verification.odds import ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.tilted import Order, Tilt, worse_than_text
from specdec.verification.verdicts import Decided, last_of, root_bounds, verdicts


class GreedyMultiPath(Batched):
    """Choose the best of K i.i.d. paths, token by token, and verify it as a block.

    (Thomas and Pal 2026, GBV.) At each node tokens are ordered by p / q, largest first; of the
    paths that agree so far those with the best next token go on. So the chosen path is the first
    in a lexicographic order, and its own distribution is known from the rows along it alone: see
    `Tilt`. Block verification (Sun et al. 2025) of the chosen path with that distribution as q is
    lossless, since nothing else is known of the other paths.

    Choosing makes the draft more like the verifier where it gives too little to what the verifier
    wants, and less like it where both agree: of equal p and q something is rejected. With one path
    it is block verification. Looks ahead, so noise must never be used again in a later step.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.PATHS})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the paths of a batch."""
        trees = [each.tree for each in shown.proposals]
        nodes = CandidateNodes.of(shown)
        order = Order.of(nodes.p, nodes.q)
        seen = _along(nodes, order, trees)
        q = seen.tilt.applied(order, nodes.q)
        ahead = seen.own[:, None] * nodes.p  # c p
        excess = (ahead - q).clamp(min=0).sum(dim=-1)

        def rest(places: Sequence[int]) -> Tensor:
            ours, drawn, p = (rows_of(each, places) for each in (ahead, q, nodes.p))
            return residual(ours, drawn, p)

        last = LastToken(shown, nodes, rest)
        numbers = torch.stack([seen.own, excess, overlaps(nodes)], dim=1)
        columns = torch.cat([numbers.double(), seen.reached, seen.ranks.double()], dim=1)
        bounds = root_bounds(shown, nodes)
        table, bound, *drawn = together(columns, bounds, *last.ahead(_asked_before))
        by_request = nodes.by_request(
            [_PathsOfRow.of(row, nodes.width) for row in table], len(trees)
        )
        decided = [
            _decided(tree, rows, stream)
            for tree, rows, stream in zip(trees, by_request, shown.streams, strict=True)
        ]
        tokens = last.behind([last_of(one.path) for one in decided], drawn)
        return verdicts(shown, decided, tokens, nodes, bound[0])

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay of paths, of which a single one is a block."""
        return {Draw.SINGLE: CHAIN_FORM, Draw.PATHS: _PATHS}.get(draw)


class _Seen(NamedTuple):
    """What is known of I nodes if the chosen path comes there, and of their children, K at most."""

    own: Tensor  # [I]: c
    tilt: Tilt
    reached: Tensor  # [I, K]: c of the children
    ranks: Tensor  # [I, K] int64: where their tokens stand among all, the best ones last


def _along(nodes: CandidateNodes, order: Order, trees: Sequence[CandidateTree]) -> _Seen:
    """Follow all paths from the root at once, depth by depth."""
    depths = [trees[owner].depths[node] for owner, node in nodes.places]
    p, q = (each.gather(1, nodes.token_ids).double() for each in (nodes.p, nodes.q))
    own, share = p.new_ones(len(p)), p.new_ones(len(p))
    reached, shares = torch.ones_like(p), torch.ones_like(p)
    for depth in range(1 + max(depths, default=-1)):
        here = [place for place, found in enumerate(depths) if found == depth]
        at = on_device(here, p.device, torch.int64)
        if depth:
            above = on_device(_of_parents(nodes, trees, here), p.device, torch.int64)
            own[at], share[at] = reached.flatten()[above], shares.flatten()[above]
        tilt = _tilt(share[at], trees, [nodes.owners[place] for place in here])
        taken, below = tilt.of_tokens(order.at(here), q[at], nodes.token_ids[at])
        reached[at] = ratio(own[at][:, None] * p[at], taken)
        shares[at] = below
    ranks = order.ranks.gather(1, nodes.token_ids)
    return _Seen(own.to(nodes.p.dtype), _tilt(share, trees, nodes.owners), reached, ranks)


def _tilt(share: Tensor, trees: Sequence[CandidateTree], owners: Sequence[int]) -> Tilt:
    """Return how nodes with these shares are tilted, whose trees are those of `owners`."""
    counts = [len(trees[owner].children[ROOT]) for owner in owners]
    return Tilt(share, on_device(counts, share.device, torch.int64), max(counts, default=1))


def _of_parents(
    nodes: CandidateNodes, trees: Sequence[CandidateTree], here: Sequence[int]
) -> list[int]:
    """Return where some nodes stand among the children of all."""
    found: list[int] = []
    for place in here:
        owner, node = nodes.owners[place], nodes.numbers[place]
        parent = trees[owner].parents[node]
        number = trees[owner].children[parent].index(node)
        found.append(nodes.places[owner, parent] * nodes.width + number)
    return found


class _PathsOfRow(NamedTuple):
    """The numbers of one node."""

    own: float
    excess: float
    overlap: float
    reached: Sequence[float]
    ranks: Sequence[float]

    @classmethod
    def of(cls, row: Sequence[float], width: int) -> "_PathsOfRow":
        own, excess, overlap = row[:3]
        return cls(own, excess, overlap, row[3 : 3 + width], row[3 + width :])


def _decided(tree: CandidateTree, rows: Mapping[int, _PathsOfRow], stream: Stream) -> Decided:
    path = _chosen(tree, rows)
    above = [rows[node] for node in (ROOT, *path) if node in rows]
    accepted = max(tree.depths)
    while accepted > 0 and not stream.accept(_holds(tree, rows, path, accepted)):
        accepted -= 1
    expected = sum(row.own - row.excess for row in above)  # see block verification
    return Decided(path[:accepted], expected, {node: row.overlap for node, row in rows.items()})


def _chosen(tree: CandidateTree, rows: Mapping[int, _PathsOfRow]) -> list[int]:
    """Return the best path; of equal ones the first."""
    alike, last = [ROOT], ROOT
    while below := [
        (rows[node].ranks[number], child)
        for node in alike
        for number, child in enumerate(tree.children[node])
    ]:
        _, last = max(below, key=lambda each: each[0])
        alike = [child for _, child in below if tree.token_ids[child] == tree.token_ids[last]]
    return tree.path_to(last)


def _holds(
    tree: CandidateTree, rows: Mapping[int, _PathsOfRow], path: Sequence[int], i: int
) -> float:
    """Return the probability that block verification's test of x_1 .. x_i holds.

    No test of what is not there holds; it is asked for, so that it is known how many questions a
    token comes behind, whichever path was chosen.
    """
    if i > len(path):
        return 0.0
    node = path[i - 1]
    if node in rows:
        row = rows[node]
        total = row.excess + (1 - row.own)
        return row.excess / total if total > 0 else 1.0
    parent = tree.parents[node]
    return rows[parent].reached[tree.children[parent].index(node)]


def _asked_before(tree: CandidateTree) -> list[int]:  # [N+1]
    """The deepest test is asked first; the one that holds ends the questions."""
    deepest = max(tree.depths)
    return [deepest - max(0, depth - 1) for depth in tree.depths]


def _note(nodes: TextNodes) -> Tensor:  # [n, 2] float64
    """Note q of the text's token, and of all worse ones."""
    return torch.stack([nodes.of_text(nodes.q).double(), worse_than_text(nodes)], dim=1)


def _shares(nodes: TextNodes) -> Tensor:  # [n, K]
    """Return P(A >= d | text, A >= d - 1) of a block that is drawn from the tilted distribution.

    Of equal paths the first is accepted; which one that is tells nothing of A, so here each is as
    likely as the others.
    """
    share = torch.ones_like(nodes.log_p)
    tilted: list[Tensor] = []
    for note, log_ratio in zip(nodes.notes, nodes.log_ratios, strict=True):
        q, worse = note.unbind(dim=1)
        tilt = Tilt(share, torch.full_like(share, nodes.num_paths), nodes.num_paths)
        weight, share = tilt.of_text(worse, q)
        tilted.append(log_ratio + weight.log())
    found = shares_along(tilted, torch.zeros_like(nodes.log_p))
    return (found / nodes.num_children)[:, None].expand(-1, nodes.num_children)


_PATHS = ClosedForm(_shares, reads_path=True, note=_note)
