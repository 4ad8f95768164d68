"""The walk from the root downwards that most rules are: ask the children, else draw a token."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.on_host import floats
from specdec.core.outcome import Outcome
from specdec.core.randomness import Stream
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.overlap import overlaps, transport_bound

# For each node with candidates a number for each of its children, in drawing order.
PerChild = Mapping[int, Sequence[float]]


def walk(
    tree: CandidateTree,
    accept: PerChild,
    draw: Callable[[int], int],
    stream: Stream,
    follow: bool = False,
) -> tuple[list[int], int]:
    """Return the accepted path and the token after it.

    At each node the children are asked in drawing order; if none is accepted, `draw(node)` gives
    the next token. With `follow` the walk goes on if that token is a child's: free, and lossless
    for children that were not drawn.
    """
    path: list[int] = []
    node = ROOT
    while True:
        children = zip(tree.children[node], accept.get(node, ()), strict=False)
        child = next((c for c, probability in children if stream.accept(probability)), None)
        if child is None:
            token = draw(node)
            child = bearer(tree, node, token) if follow else None
            if child is None:
                return path, token
        path.append(child)
        node = child


def bearer(tree: CandidateTree, node: int, token: int) -> int | None:
    """Return the first child of a node that bears a token, if there is one."""
    return next((c for c in tree.children[node] if tree.token_ids[c] == token), None)


def follow(proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
    """Draw from p at each node and walk on while a child bears the drawn token."""
    tree = proposal.tree
    draw = stream.choose_each(verifier_probs)
    nodes = (
        None if proposal.draw is Draw.DETERMINISTIC else CandidateNodes.of(proposal, verifier_probs)
    )
    probs = token_probs(tree, verifier_probs)
    if nodes is not None:
        probs = torch.cat([probs, overlaps(nodes)])
    found = floats(probs)
    share = borne(tree, found)
    path, token = walk(tree, {}, draw, stream, follow=True)
    some = {node: sum(each) for node, each in share.items()}
    expected = expected_accepted(tree, share, some)
    if nodes is None:
        visited = [node for node in (ROOT, *path) if tree.children[node]]
        overlap = tuple(some[node] for node in visited)  # of p and the point masses
        return Verdict(tuple(path), token, ending(proposal, path), expected, overlap)
    seen = dict(zip(nodes.numbers, found[tree.num_draft_tokens :], strict=True))
    return verdict_on(proposal, nodes, path, token, expected, seen)


def token_probs(tree: CandidateTree, verifier_probs: Tensor) -> Tensor:  # [N]
    """Return p of each draft token after its parent."""
    return verifier_probs[list(tree.parents[1:]), list(tree.token_ids[1:])]


def borne(tree: CandidateTree, probs: Sequence[float]) -> dict[int, list[float]]:
    """Return P(the verifier's draw goes on to this child): p of its token, 0 if a sibling has it.

    For each node a list, for its children in order. `probs` are those of `token_probs`.
    """
    share: dict[int, list[float]] = {}
    for child in range(1, len(tree.parents)):
        parent = tree.parents[child]
        first = bearer(tree, parent, tree.token_ids[child]) == child
        share.setdefault(parent, []).append(probs[child - 1] if first else 0.0)
    return share


def shares(accept: PerChild) -> dict[int, list[float]]:
    """Return P(go on with this child | its parent is reached) from P(accept | asked)."""
    share: dict[int, list[float]] = {}
    for node, row in accept.items():
        live = 1.0
        share[node] = []
        for probability in row:
            share[node].append(live * probability)
            live *= 1 - probability
    return share


def expected_accepted(tree: CandidateTree, share: PerChild, some: Mapping[int, float]) -> float:
    """Return E[A] given the candidates: the sum over nodes of P(reached) * P(some child accepted).

    `some` may have the noise of a node's own candidates averaged out, where a formula is known:
    that lowers the variance and leaves the mean as it is (Rao-Blackwell).
    """
    reached = {ROOT: 1.0}
    for node, row in share.items():  # parents stand before their children
        for child, probability in zip(tree.children[node], row, strict=False):
            reached[child] = reached[node] * probability
    return sum(reached[node] * value for node, value in some.items())


def ending(proposal: Proposal, path: Sequence[int]) -> Outcome:
    """Say where the token after the path came from: were there candidates that were refused?"""
    last = path[-1] if path else ROOT
    is_last = last == proposal.tree.num_draft_tokens
    refused = proposal.tree.children[last] or (proposal.withheld and is_last)
    return Outcome.RECOVERED if refused else Outcome.BONUS


def verdict_on(
    proposal: Proposal,
    nodes: CandidateNodes,
    path: Sequence[int],
    token: int,
    expected: float,
    overlap: Mapping[int, float] | None = None,
) -> Verdict:
    """Put together a verdict on sampled candidates; `overlap` by node, if it is known already."""
    if overlap is None:
        overlap = dict(zip(nodes.numbers, floats(overlaps(nodes)), strict=True))
    visited = [place for place, node in enumerate(nodes.numbers) if node in (ROOT, *path)]
    seen = tuple(overlap[nodes.numbers[place]] for place in visited)
    bound = () if proposal.draw is Draw.DETERMINISTIC else seen[:1]
    if bound and nodes.counts[0] > 1:  # a vocabulary takes its time to sort: for the root only
        bound = (float(transport_bound(nodes.p[0], nodes.q[0], nodes.counts[0])),)
    return Verdict(tuple(path), token, ending(proposal, path), expected, seen, bound)
