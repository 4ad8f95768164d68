"""The likeliest candidates for certain, and one that is drawn from the rest of q."""

from collections.abc import Mapping

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.on_host import floats, rows
from specdec.core.randomness import Stream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification import single_draw
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.ends import TopAndLast, top_and_others
from specdec.verification.odds import ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.walk import borne, expected_accepted, token_probs, verdict_on, walk


class TopPlusOne:
    """Ask the drawn candidate y ~ w; else draw from norm((p - w)+), which may be a fixed one.

    (Hu et al. 2025.) The children of a node are a set T of fixed tokens and, last, one draw from
    w = q without T, renormalised. (p - w)+ has all of p on T, so that the fixed candidates need no
    question of their own. It accepts p(T) + sum_v min(p, w), the most that these draws allow.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.TOP_PLUS_ONE})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree. Row i of `verifier_probs` [N+1, V] is p after node i."""
        tree = proposal.tree
        nodes = CandidateNodes.of(proposal, verifier_probs)
        others = _without_fixed(nodes)
        last = torch.tensor(nodes.counts, dtype=torch.int64, device=nodes.p.device) - 1
        drawn = nodes.token_ids.gather(1, last[:, None])
        accept = ratio(nodes.p.gather(1, drawn), others.gather(1, drawn))
        weights = verifier_probs.clone()
        weights[list(nodes.numbers)] = residual(nodes.p, others, nodes.p)
        shared = nodes.p.minimum(others).sum(dim=-1)
        columns = rows(torch.stack([accept.squeeze(1), shared, overlaps(nodes)], dim=1))
        draw = stream.choose_each(weights)
        by_node = dict(zip(nodes.numbers, columns, strict=True))
        ask = {node: _last_only(tree.children[node], row[0]) for node, row in by_node.items()}
        path, token = walk(tree, ask, draw, stream, follow=True)
        # The draw averaged out, a fixed candidate is accepted with its p.
        share = borne(tree, floats(token_probs(tree, verifier_probs)))
        some: dict[int, float] = {}
        for node, (accepted, covered, _) in by_node.items():
            some[node] = sum(share[node][:-1]) + covered
            share[node][-1] = accepted
        expected = expected_accepted(tree, share, some)
        seen = {node: row[2] for node, row in by_node.items()}
        return verdict_on(proposal, nodes, path, token, expected, seen)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        return FORMS.get(draw)


def _last_only(children: tuple[int, ...], accept: float) -> list[float]:
    return [0.0] * (len(children) - 1) + [accept]


def _without_fixed(nodes: CandidateNodes) -> Tensor:  # [I, V]
    """Return w: q without all but the last candidate of each node, renormalised.

    Where nothing is left of q, the last candidate was not drawn either: w is a point mass there.
    """
    others = nodes.q.clone()
    for row, count in enumerate(nodes.counts):
        others[row, nodes.token_ids[row, : count - 1]] = 0.0
    total = others.sum(dim=-1, keepdim=True)
    last = torch.tensor(nodes.counts, device=others.device)[:, None] - 1
    fixed = torch.zeros_like(others).scatter_(1, nodes.token_ids.gather(1, last), 1.0)
    return torch.where(total > 0, others / total, fixed)


def _shares(nodes: TextNodes) -> Tensor:  # [n, K]
    """Return the shares: all but the last child are the likeliest tokens, and never rejected."""
    is_top, others = top_and_others(nodes)
    at_x = nodes.of_text(others)
    last = ratio(at_x, nodes.log_p.exp().to(at_x.dtype)) * ~is_top.any(dim=1)
    return torch.cat([is_top.to(at_x.dtype), last[:, None]], dim=1)


FORMS: Mapping[Draw, ClosedForm] = {
    Draw.SINGLE: single_draw.FORM,
    Draw.TOP_PLUS_ONE: ClosedForm(_shares, needs_p=False, ends=TopAndLast(single_draw.ENDS)),
}
