"""Traversal verification: from the leaves to the root, so that a path is judged as a whole."""

from collections.abc import Iterator

import torch
from torch import Tensor

from specdec.core.randomness import Stream
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.asked import Asked
from specdec.verification.asking import ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.rejection import law_of_draw
from specdec.verification.walking import verdict_on


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

    def verify(self, proposal: Proposal, target_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree. Row i of `target_probs` [N+1, V] is p after node i."""
        tree = proposal.tree
        asked = Asked.of(proposal, target_probs)
        accept, rests = _leaf_states(asked, proposal)
        place = {node: row for row, node in enumerate(asked.nodes)}
        padding = accept.new_zeros(len(accept) - len(asked.nodes))
        facts = torch.stack([accept, torch.cat([overlaps(asked), padding])])
        probabilities, overlap = facts.tolist()
        order = list(_children_first(tree, ROOT))
        expected, live = 0.0, 1.0
        for node in order:
            expected += live * probabilities[node] * tree.depths[node]
            live *= 1 - probabilities[node]
        last = next(node for node in order if node == ROOT or stream.accept(probabilities[node]))
        weights = rests[place[last]] if last in place else target_probs[last]
        seen = dict(zip(asked.nodes, overlap, strict=False))
        path = _path_to(tree, last)
        return verdict_on(proposal, asked, path, stream.choose(weights), expected, seen)


def _leaf_states(asked: Asked, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """Return, for when all its children are refused, each node's acceptance and rest.

    Acceptance is [N+1] (1 for the root), rests are [I, V] in the order of `asked.nodes`.
    """
    tree = proposal.tree
    accept = asked.p.new_ones(len(tree.parents))
    rests = asked.p.clone()
    places: dict[int, list[int]] = {}
    for place, node in enumerate(asked.nodes):
        places.setdefault(tree.depths[node], []).append(place)
    for depth in sorted(places):
        here = places[depth]
        nodes = [asked.nodes[place] for place in here]
        own, rests[here] = _refuse_all(asked, here, accept[nodes], tree, accept, proposal.draw)
        accept[nodes] = own if depth > 0 else 1.0
    return accept, rests


def _refuse_all(
    asked: Asked,
    here: list[int],
    own: Tensor,  # [n]: acceptance of the n nodes while their children are asked
    tree: CandidateTree,
    accept: Tensor,  # [N+1]: the children's is filled in
    draw: Draw,
) -> tuple[Tensor, Tensor]:
    """Refuse the children of the nodes at some places one after another."""
    p = asked.p[here]
    is_root = asked.nodes[here[0]] == ROOT
    for number in range(max(asked.counts[place] for place in here)):
        token_ids = asked.token_ids[here, number : number + 1]
        q = law_of_draw(asked, draw, number)[here]
        reached = ratio(own[:, None] * p.gather(1, token_ids), q.gather(1, token_ids)).squeeze(1)
        children = [tree.children[asked.nodes[place]][number : number + 1] for place in here]
        with_child = [row for row, child in enumerate(children) if child]
        accept[[child[0] for child in children if child]] = reached[with_child]
        ahead = own[:, None] * p
        excess = (ahead - q).clamp(min=0).sum(dim=-1)
        total = excess + 1 - own
        left = torch.where(total > 0, excess / total, 1.0)
        drawn = asked.drawn(number)
        keep = torch.ones(len(here), 1, dtype=torch.bool) if drawn is None else drawn[here]
        keep = keep.to(p.device)
        if not is_root:
            own = left.where(keep.squeeze(1), own)
        p = residual(ahead, q, p).where(keep, p)
    return own, p


def _children_first(tree: CandidateTree, node: int) -> Iterator[int]:
    """Visit a node after its children: each is a leaf when its turn comes."""
    for child in tree.children[node]:
        yield from _children_first(tree, child)
    yield node


def _path_to(tree: CandidateTree, node: int) -> list[int]:
    path: list[int] = []
    while node != ROOT:
        path.append(node)
        node = tree.parents[node]
    return path[::-1]
