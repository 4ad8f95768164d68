"""Lossy rules with a set of acceptable tokens: the longest path within it wins."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.on_host import together
from specdec.core.shown import Shown
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.divergence import divergences
from specdec.verification.last_token import LastToken
from specdec.verification.overlap import overlaps
from specdec.verification.verdicts import Decided, last_of, root_bounds, verdicts
from specdec.verification.walk import expected_accepted


def accept_longest(shown: Shown, nodes: CandidateNodes, acceptable: Tensor) -> list[Verdict]:
    """Accept the longest path of acceptable tokens, the likeliest of equally long ones.

    Row i of `acceptable` [I, V] (bool) is about the children of candidate node i. What follows
    the path is drawn from p.
    """
    passed = acceptable.gather(1, nodes.token_ids).to(nodes.p.dtype)
    probs = nodes.p.gather(1, nodes.token_ids)
    some = (nodes.q * acceptable).sum(dim=-1, keepdim=True)
    strays = divergences(nodes.q * acceptable + (1 - some) * nodes.p, nodes.p)
    columns = torch.cat([passed, probs, some, overlaps(nodes)[:, None], strays], dim=1)
    # Nothing is taken from p where candidates were refused.
    last = LastToken(shown, nodes, lambda places: nodes.at(places).p)
    bounds = root_bounds(shown, nodes)
    table, bound, *ahead = together(columns, bounds, *last.ahead(_asked_before))
    decided = [
        _accepted(proposal, rows, nodes.width)
        for proposal, rows in zip(
            shown.proposals, nodes.by_request(table, len(shown.proposals)), strict=True
        )
    ]
    tokens = last.behind([last_of(one.path) for one in decided], ahead)
    return verdicts(shown, decided, tokens, nodes, bound[0])


def _asked_before(tree: CandidateTree) -> list[int]:  # [N+1]
    """Nothing is decided by chance but the last token."""
    return [0] * len(tree.parents)


def _accepted(proposal: Proposal, rows: Mapping[int, Sequence[float]], width: int) -> Decided:
    tree = proposal.tree
    passed = {node: row[:width] for node, row in rows.items()}
    probs = {node: row[width : 2 * width] for node, row in rows.items()}
    overlap = {node: row[2 * width + 1] for node, row in rows.items()}
    path = _longest(tree, passed, probs)
    if proposal.draw is Draw.DETERMINISTIC:
        strays = _certain(tree, probs, path)
        return Decided(path, float(len(path)), overlap, strays)
    some = {node: row[2 * width] for node, row in rows.items()}
    strays = {node: (row[-2], row[-1]) for node, row in rows.items()}
    return Decided(path, expected_accepted(tree, passed, some), overlap, strays)


def _longest(
    tree: CandidateTree, passed: Mapping[int, Sequence[float]], probs: Mapping[int, Sequence[float]]
) -> list[int]:
    reached: dict[int, tuple[int, float]] = {ROOT: (0, 1.0)}  # depth and joint p
    for node in passed:
        if node in reached:
            depth, joint = reached[node]
            for child, ok, p in zip(tree.children[node], passed[node], probs[node], strict=False):
                if ok:
                    reached[child] = (depth + 1, joint * p)
    return tree.path_to(max(reached, key=reached.__getitem__))


def _certain(
    tree: CandidateTree, probs: Mapping[int, Sequence[float]], path: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """Return how far a path that is certain is from p, node by node: 1 - p(x), and -log p(x)."""
    found: dict[int, tuple[float, float]] = {}
    for node in path:
        parent = tree.parents[node]
        p = probs[parent][tree.children[parent].index(node)]
        found[parent] = (1 - p, -math.log(p))
    return found
