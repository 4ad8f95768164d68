"""The likeliest candidates for certain, and one that is drawn from the rest of q."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.on_device import on_device
from specdec.core.on_host import together
from specdec.core.randomness import Stream
from specdec.core.shown import Shown
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Verdict
from specdec.verification import single_draw
from specdec.verification.batched import Batched
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.each_token import EachToken
from specdec.verification.ends import TopAndLast, top_and_others
from specdec.verification.odds import ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.verdicts import Decided, last_of, root_bounds, verdicts
from specdec.verification.walk import borne, by_tree, expected_accepted, token_probs, walk


class TopPlusOne(Batched):
    """Ask the drawn candidate y ~ w; else draw from norm((p - w)+), which may be a fixed one.

    (Hu et al. 2025.) The children of a node are a set T of fixed tokens and, last, one draw from
    w = q without T, renormalised. (p - w)+ has all of p on T, so that the fixed candidates need no
    question of their own. It accepts p(T) + sum_v min(p, w), the most that these draws allow.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.TOP_PLUS_ONE})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        nodes = CandidateNodes.of(shown)
        others = _without_fixed(nodes)
        last = on_device(nodes.counts, nodes.p.device, torch.int64) - 1
        drawn = nodes.token_ids.gather(1, last[:, None])
        accept = ratio(nodes.p.gather(1, drawn), others.gather(1, drawn))
        shared = nodes.p.minimum(others).sum(dim=-1)
        columns = torch.stack([accept.squeeze(1), shared, overlaps(nodes)], dim=1)
        tokens = EachToken(shown, _weights(shown, nodes, residual(nodes.p, others, nodes.p)))
        table, probs, bounds, *ahead = together(
            columns, token_probs(shown)[None], root_bounds(shown, nodes), *tokens.ahead
        )
        by_request = nodes.by_request(table, len(shown.proposals))
        draws = tokens.choosers(ahead)
        decided = [
            _walked(*each)
            for each in zip(
                (proposal.tree for proposal in shown.proposals),
                by_request,
                by_tree(shown, probs[0]),
                draws,
                shown.streams,
                strict=True,
            )
        ]
        found = [draw(last_of(one.path)) for draw, one in zip(draws, decided, strict=True)]
        return verdicts(shown, decided, found, nodes, bounds[0])

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        return FORMS.get(draw)


def _weights(shown: Shown, nodes: CandidateNodes, rest: Tensor) -> Tensor:  # [B, M, V]
    """Put what is left of p where there are candidates, and p where there are none."""
    width = shown.probs.shape[1]
    pairs = zip(nodes.owners, nodes.numbers, strict=True)
    rows = [owner * width + number for owner, number in pairs]
    there = on_device(rows, rest.device, torch.int64)
    return shown.probs.flatten(0, 1).index_copy(0, there, rest).view_as(shown.probs)


def _walked(
    tree: CandidateTree,
    rows: Mapping[int, Sequence[float]],
    probs: Sequence[float],
    draw: Callable[[int], int],
    stream: Stream,
) -> Decided:
    ask = {node: _last_only(tree.children[node], row[0]) for node, row in rows.items()}
    path = walk(tree, ask, stream, draw)
    # The draw averaged out, a fixed candidate is accepted with its p.
    share = borne(tree, probs)
    some: dict[int, float] = {}
    for node, (accepted, covered, _) in rows.items():
        some[node] = sum(share[node][:-1]) + covered
        share[node][-1] = accepted
    expected = expected_accepted(tree, share, some)
    return Decided(path, expected, {node: row[2] for node, row in rows.items()})


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
    last = on_device(nodes.counts, others.device)[:, None] - 1
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
