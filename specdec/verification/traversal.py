"""Traversal verification: from the leaves to the root, so that a path is judged as a whole."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm
from specdec.core.on_host import floats
from specdec.core.randomness import Stream
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.block import CHAIN_FORM
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.odds import ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.rejection import probs_of_draw
from specdec.verification.walk import verdict_on


class Traversal:
    """Ask the leftmost leaf; if it is refused, drop it and ask what is the leftmost leaf then.

    (Weng et al. 2025.) A node is accepted with the clipped ratio of its whole path, and each
    refused child leaves its parent with a residual p, another acceptance probability and, without
    replacement, a smaller q. On a chain it is block verification. Looks ahead as that does, so
    noise must never be used again in a later step.

    What a refusal does depends on nothing below the refused node, so the nodes of one depth are
    computed together, and the order of the questions is fixed: children before their parents.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.IID, Draw.WITHOUT_REPLACEMENT, Draw.FILTERED})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree. Row i of `verifier_probs` [N+1, V] is p after node i."""
        tree = proposal.tree
        nodes = CandidateNodes.of(proposal, verifier_probs)
        levels = list(_refused_levels(nodes, proposal))
        acceptances = [each for level in levels for each in (level.reached.flatten(), level.own)]
        numbers = iter(floats(torch.cat([*acceptances, overlaps(nodes)])))
        accept = _acceptances(levels, tree, numbers)
        seen = dict(zip(nodes.numbers, numbers, strict=True))
        order = list(_children_first(tree, ROOT))
        expected, live = 0.0, 1.0
        for node in order:
            expected += live * accept[node] * tree.depths[node]
            live *= 1 - accept[node]
        last = next(node for node in order if node == ROOT or stream.accept(accept[node]))
        rest = (level.rest[level.nodes.index(last)] for level in levels if last in level.nodes)
        weights = next(rest, verifier_probs[last])
        path = tree.path_to(last)
        return verdict_on(proposal, nodes, path, stream.choose(weights), expected, seen)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay of chains, which are blocks; of trees no closed form is known."""
        return CHAIN_FORM if draw in (Draw.SINGLE, Draw.FILTERED) else None


class _Level(NamedTuple):
    """The n nodes of one depth that have children, up to K each, and what refusing those does."""

    nodes: tuple[int, ...]  # [n]
    reached: Tensor  # [n, K]: acceptance of each child while it is asked about
    own: Tensor  # [n]: acceptance of the nodes themselves once all their children are refused
    rest: Tensor  # [n, V]: what p has become then


def _refused_levels(nodes: CandidateNodes, proposal: Proposal) -> Iterator[_Level]:
    """Refuse all candidates, depth by depth."""
    tree = proposal.tree
    own = nodes.p.new_ones(1)
    for depth in range(max(tree.depths) + 1):
        places = [place for place, node in enumerate(nodes.numbers) if tree.depths[node] == depth]
        if not places:
            return
        here = nodes.at(places)
        level = _refuse_all(here, own, proposal.draw)
        yield level
        # The acceptance with which the nodes of the next depth begin, of those with children and
        # in their order, which need not be that of their parents.
        width = level.reached.shape[1]
        at = {
            child: row * width + number
            for row, node in enumerate(here.numbers)
            for number, child in enumerate(tree.children[node])
        }
        children = [at[node] for node in nodes.numbers if node in at]
        own = level.reached.flatten()
        own = own if children == list(range(len(own))) else own[children]


def _refuse_all(here: CandidateNodes, own: Tensor, draw: Draw) -> _Level:
    """Refuse the candidates of some nodes one after another; the root is always accepted."""
    p = here.p
    reached = list[Tensor]()
    for number in range(here.width):
        token_ids = here.token_ids[:, number : number + 1]
        q = probs_of_draw(here, draw, number)
        ahead = own[:, None] * p
        reached.append(ratio(ahead.gather(1, token_ids), q.gather(1, token_ids)))
        excess = (ahead - q).clamp_(min=0).sum(dim=-1)
        total = excess + 1 - own
        left = torch.where(total > 0, excess / total, 1.0)
        rest = residual(ahead, q, p)
        drawn = here.drawn(number)
        if drawn is not None:
            left, rest = left.where(drawn.squeeze(1), own), rest.where(drawn, p)
        own, p = left, rest
    return _Level(here.numbers, torch.cat(reached, dim=1), own, p)


def _acceptances(
    levels: Sequence[_Level], tree: CandidateTree, numbers: Iterator[float]
) -> list[float]:  # [N+1]
    """Sort the levels' `reached` and `own`, in this order, by node."""
    accept = [1.0] * len(tree.parents)
    for level in levels:
        rows = [list(islice(numbers, level.reached.shape[1])) for _ in level.nodes]
        for node, row in zip(level.nodes, rows, strict=True):
            for child, probability in zip(tree.children[node], row, strict=False):
                accept[child] = probability
        for node in level.nodes:
            accept[node] = next(numbers)
    return accept


def _children_first(tree: CandidateTree, node: int) -> Iterator[int]:
    """Visit a node after its children: each is a leaf when its turn comes."""
    for child in tree.children[node]:
        yield from _children_first(tree, child)
    yield node
