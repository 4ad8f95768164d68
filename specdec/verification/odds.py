"""Rules that accept each candidate with a probability of its own, and else draw from a residual.

All probabilities are computed for all nodes at once, on the device, and come to the host in one
transfer; the second and last one is the token that is drawn in the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.on_host import rows
from specdec.core.randomness import Stream
from specdec.core.values import Proposal, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.walk import expected_accepted, shares, verdict_on, walk

HAIR = 1e-30  # far below the rounding of any residual that has mass


@dataclass(frozen=True)
class Odds:
    """What a rule makes of the candidates at I nodes, K at most at each, before any decision."""

    overlap: Tensor  # [I]: sum_v min(p, q)
    accept: Tensor  # [I, K]: P(go on with the child | the ones before it were refused)
    some: Tensor  # [I]: P(go on with any child), the candidates' noise averaged out where possible
    rest: Callable[[int], Tensor]  # i -> [V]: what the next token is drawn from if none is


def decide(
    proposal: Proposal, verifier_probs: Tensor, stream: Stream, nodes: CandidateNodes, odds: Odds
) -> Verdict:
    """Walk down the tree with these odds."""
    tree = proposal.tree
    columns = torch.cat([odds.accept, odds.some[:, None], odds.overlap[:, None]], dim=1)
    by_node = dict(zip(nodes.numbers, rows(columns), strict=True))
    place = {node: number for number, node in enumerate(nodes.numbers)}

    def draw(node: int) -> int:
        return stream.choose(odds.rest(place[node]) if node in place else verifier_probs[node])

    accept = {node: row[:-2] for node, row in by_node.items()}
    path, token = walk(tree, accept, draw, stream)
    expected = expected_accepted(tree, shares(accept), {n: row[-2] for n, row in by_node.items()})
    overlap = {node: row[-1] for node, row in by_node.items()}
    return verdict_on(proposal, nodes, path, token, expected, overlap)


def residual(p: Tensor, q: Tensor, fallback: Tensor) -> Tensor:  # [..., V] each
    """Return norm((p - q)+) and, where rounding leaves nothing of it, `fallback`."""
    # In exact arithmetic a residual without mass is never drawn from; in floats it can be. A hair
    # of the fallback mends that without waiting for the device to look.
    rest = (p - q).clamp_(min=0).add_(fallback, alpha=HAIR)
    # Behind the end of a text there is no p at all, and nothing is drawn from what is left of it.
    return rest / rest.sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(rest.dtype).tiny)


def ratio(p: Tensor, q: Tensor) -> Tensor:
    """Return min(1, p / q); 0 where q is 0, since nothing is drawn from there."""
    return torch.where(q > 0, (p / q).clamp_(max=1), 0.0)
