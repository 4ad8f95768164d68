"""Lossy rules with a set of acceptable tokens: the longest path within it wins."""

import torch
from torch import Tensor

from specdec.core.on_host import rows
from specdec.core.randomness import Stream
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.divergence import with_divergence
from specdec.verification.walk import expected_accepted, verdict_on


def accept_longest(
    proposal: Proposal,
    verifier_probs: Tensor,
    stream: Stream,
    nodes: CandidateNodes,
    acceptable: Tensor,
) -> Verdict:
    """Accept the longest path of acceptable tokens, the likeliest of equally long ones.

    Row i of `acceptable` [I, V] (bool) is about the children of node `nodes.numbers[i]`. What
    follows the path is drawn from p.
    """
    tree = proposal.tree
    passed = acceptable.gather(1, nodes.token_ids).to(nodes.p.dtype)
    probs = nodes.p.gather(1, nodes.token_ids)
    some = (nodes.q * acceptable).sum(dim=-1)
    columns = rows(torch.cat([passed, probs, some[:, None]], dim=1))
    by_node = dict(zip(nodes.numbers, columns, strict=True))
    share = {node: row[: nodes.width] for node, row in by_node.items()}
    path = _longest(tree, share, {n: row[nodes.width : -1] for n, row in by_node.items()})
    if proposal.draw is Draw.DETERMINISTIC:
        expected = float(len(path))
        emitted_probs = _point_masses(nodes, tree, path)
    else:
        covered = {node: row[-1] for node, row in by_node.items()}
        expected = expected_accepted(tree, share, covered)
        emitted_probs = nodes.q * acceptable + (1 - some[:, None]) * nodes.p
    token = stream.choose(verifier_probs[path[-1] if path else ROOT])
    return with_divergence(verdict_on(proposal, nodes, path, token, expected), nodes, emitted_probs)


def _longest(
    tree: CandidateTree, passed: dict[int, list[float]], probs: dict[int, list[float]]
) -> list[int]:
    reached: dict[int, tuple[int, float]] = {ROOT: (0, 1.0)}  # depth and joint p
    for node in passed:
        if node in reached:
            depth, joint = reached[node]
            for child, ok, p in zip(tree.children[node], passed[node], probs[node], strict=False):
                if ok:
                    reached[child] = (depth + 1, joint * p)
    return tree.path_to(max(reached, key=reached.__getitem__))


def _point_masses(nodes: CandidateNodes, tree: CandidateTree, path: list[int]) -> Tensor:  # [I, V]
    """Return the distributions after the nodes of the path: what it goes on with is certain."""
    emitted_probs = nodes.p.clone()
    for node in path:
        row = nodes.numbers.index(tree.parents[node])
        emitted_probs[row] = 0.0
        emitted_probs[row, tree.token_ids[node]] = 1.0
    return emitted_probs
