"""Rules that ask from the leaves to the root, so that a path is judged as a whole.

What a refusal does depends on nothing below the refused node, so the nodes of one depth are
computed together, and the order of the questions is fixed: children before their parents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.on_host import together
from specdec.core.randomness import Stream
from specdec.core.shown import Shown, rows_of
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.last_token import LastToken
from specdec.verification.overlap import overlaps
from specdec.verification.verdicts import Decided, last_of, root_bounds, verdicts


class RefusedLevel(NamedTuple):
    """The n nodes of one depth that have children, up to K each, and what refusing those does."""

    nodes: CandidateNodes  # n of them
    reached: Tensor  # [n, K]: acceptance of each child while it is asked about
    own: Tensor  # [n]: acceptance of the nodes themselves once all their children are refused
    rest: Tensor  # [n, V]: what p has become then


# The nodes of a level, the acceptance with which each of them begins, [n], and the draw.
Refuse = Callable[[CandidateNodes, Tensor, Draw], RefusedLevel]


def decide_from_leaves(shown: Shown, refuse: Refuse) -> list[Verdict]:
    """Ask the leftmost leaf; if it is refused, drop it and ask what is the leftmost leaf then.

    `refuse` says how likely each child of some nodes is to be accepted while it is asked about, and
    what the refusal of all of them leaves to their parents.
    """
    trees = [each.tree for each in shown.proposals]
    nodes = CandidateNodes.of(shown)
    levels = list(_refused_levels(nodes, trees, shown.draw, refuse))
    last = LastToken(shown, nodes, partial(_rest, nodes, levels))
    acceptances = [each for level in levels for each in (level.reached, level.own[None])]
    overlap, bounds = overlaps(nodes)[:, None], root_bounds(shown, nodes)
    seen, bound, *found = together(overlap, bounds, *acceptances, *last.ahead(_asked_before))
    ahead = found[len(acceptances) :]
    accept = _acceptances(levels, trees, found[: len(acceptances)])
    by_request = nodes.by_request(seen, len(trees))
    decided = [
        _decided(*each) for each in zip(trees, accept, by_request, shown.streams, strict=True)
    ]
    tokens = last.behind([last_of(one.path) for one in decided], ahead)
    return verdicts(shown, decided, tokens, nodes, bound[0])


def _refused_levels(
    nodes: CandidateNodes, trees: Sequence[CandidateTree], draw: Draw, refuse: Refuse
) -> Iterator[RefusedLevel]:
    """Refuse all candidates, depth by depth."""
    depths = [trees[owner].depths[node] for owner, node in nodes.places]
    own = nodes.p.new_ones(depths.count(0))
    for depth in range(1 + max(depths, default=-1)):
        here = nodes.at([place for place, found in enumerate(depths) if found == depth])
        level = refuse(here, own, draw)
        yield level
        # The acceptance with which the nodes of the next depth begin, of those with children and
        # in their order, which need not be that of their parents.
        width = level.reached.shape[1]
        at = {
            (owner, child): row * width + number
            for (owner, node), row in here.places.items()
            for number, child in enumerate(trees[owner].children[node])
        }
        children = [at[node] for node in nodes.places if node in at]
        own = rows_of(level.reached.flatten(), children)


def _rest(nodes: CandidateNodes, levels: Sequence[RefusedLevel], places: Sequence[int]) -> Tensor:
    """Return what is left of p at some of the nodes, [n] -> [n, V]."""
    keys = [*nodes.places]
    wanted = [keys[place] for place in places]
    found = [
        (level, level.nodes.places[key])
        for key in wanted
        for level in levels
        if key in level.nodes.places
    ]
    return torch.stack([level.rest[row] for level, row in found])


def _acceptances(
    levels: Sequence[RefusedLevel],
    trees: Sequence[CandidateTree],
    numbers: Sequence[Sequence[Sequence[float]]],
) -> list[list[float]]:  # [B] of [N+1]
    """Sort the levels' `reached` and `own`, in this order, by node."""
    accept = [[1.0] * len(tree.parents) for tree in trees]
    for number, level in enumerate(levels):
        reached, (own,) = numbers[2 * number : 2 * number + 2]
        for (owner, node), row, refused in zip(level.nodes.places, reached, own, strict=True):
            for child, probability in zip(trees[owner].children[node], row, strict=False):
                accept[owner][child] = probability
            accept[owner][node] = refused
    return accept


def _decided(
    tree: CandidateTree,
    accept: Sequence[float],
    overlap: Mapping[int, Sequence[float]],
    stream: Stream,
) -> Decided:
    order = list(_children_first(tree, ROOT))
    expected, live = 0.0, 1.0
    for node in order:
        expected += live * accept[node] * tree.depths[node]
        live *= 1 - accept[node]
    last = next(node for node in order if node == ROOT or stream.accept(accept[node]))
    return Decided(tree.path_to(last), expected, {node: row[0] for node, row in overlap.items()})


def _asked_before(tree: CandidateTree) -> list[int]:  # [N+1]
    """Every node is asked about in its turn, but the root, which is left when all are refused."""
    order = list(_children_first(tree, ROOT))
    turns = {node: turn for turn, node in enumerate(order, start=1)}
    return [len(order) - 1, *(turns[node] for node in range(1, len(order)))]


def _children_first(tree: CandidateTree, node: int) -> Iterator[int]:
    """Visit a node after its children: each is a leaf when its turn comes."""
    for child in tree.children[node]:
        yield from _children_first(tree, child)
    yield node
