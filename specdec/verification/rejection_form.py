"""`Rejection` given the text: the shares of its candidates, and which of them end the text."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.values import Draw
from specdec.verification import single_draw
from specdec.verification.ends import (
    Independent,
    TwoWithoutReplacement,
    behind_text,
    text_ends,
)
from specdec.verification.odds import ratio, residual
from specdec.verification.without_replacement import NUM_SEQUENCES, any_of, beside_each

# --- Independent draws ---


def covered_iid(nodes: TextNodes) -> Iterator[Tensor]:  # of [n, V]
    """Yield P(the draw is this token, and accepted | it is asked about), draw by draw."""
    rest = nodes.p
    for number in range(nodes.num_children):
        if number:
            rest = residual(rest, nodes.q, nodes.p)
        yield rest.minimum(nodes.q)


def _iid(nodes: TextNodes) -> Tensor:  # [n, K]
    """Reject i.i.d. draws in turn (Miao et al. 2024): what is left of p knows no tokens."""
    own, live = nodes.of_text(nodes.p), nodes.p.new_ones(len(nodes.p))
    columns: list[Tensor] = []
    for covered in covered_iid(nodes):
        columns.append(ratio(live * nodes.of_text(covered), own))
        live = live * (1 - covered.sum(dim=1)).clamp(min=0)
    return torch.stack(columns, dim=1)


# --- Draws without replacement ---
#
# Behind a first draw t the second one's distribution is q without t, c_t q with
# c_t = 1 / (1 - q(t)).


def without_replacement(nodes: TextNodes) -> Tensor:  # [n, K]
    """Reject draws without replacement in turn (Chen et al. 2024, Sequoia).

    Exact for two children: the second one's distribution depends on the first one's token t, which
    is rejected with (q - p)+, and all t are summed over. For more, sequences of rejected tokens are
    drawn, each rejected by then with certainty, and their weights averaged: unbiased, also where
    shares of several nodes are multiplied, since each node has sequences of its own.
    """
    p, q, num = nodes.p, nodes.q, nodes.num_children
    own = nodes.of_text(p)
    columns = [ratio(nodes.of_text(p.minimum(q)), own)]
    rest = residual(p, q, p)
    if num > 1:
        columns.append(ratio(_second_accepted(nodes, rest).sum(dim=1), own))
    if num > 2:
        drawn = [_after_rejections(nodes, rest) for _ in range(NUM_SEQUENCES)]
        mean = torch.stack(drawn).mean(dim=0)  # [n, K - 2]
        columns += list((mean / own.clamp(min=torch.finfo(p.dtype).tiny)[:, None]).unbind(1))
    return torch.stack(columns, dim=1)


def _second_accepted(nodes: TextNodes, rest: Tensor) -> Tensor:  # [n, V]
    """Return P(this token was drawn first and rejected, and then x drawn and accepted)."""
    rejected = (nodes.q - nodes.p).clamp(min=0)
    at_x = nodes.of_text(nodes.q)[:, None] / beside_each(nodes.q)
    return rejected * at_x.minimum(nodes.of_text(rest)[:, None])


def _after_rejections(nodes: TextNodes, rest: Tensor) -> Tensor:  # [n, K - 2]
    """Draw rejected tokens one after another; return m_3 ... m_K given these."""
    columns: list[Tensor] = []
    p, q, weight = nodes.p, nodes.q, nodes.p.new_ones(len(nodes.p))
    for number in range(nodes.num_children - 1):
        rejected = (q - p).clamp(min=0)
        weight = weight * rejected.sum(dim=1)
        gone = any_of(rejected, nodes.generator)
        p = rest if number == 0 else residual(p, q, p)
        q = q.scatter(1, gone, 0.0)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        if number > 0:
            columns.append(weight * nodes.of_text(p.minimum(q)))
    return torch.stack(columns, dim=1)


def _second_ended(nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n]
    """Add up: x was accepted first, or some t was rejected, and x accepted second or left over."""
    p, q = nodes.p, nodes.q
    first = nodes.of_text(p.minimum(q)) * behind_text(nodes, is_end)
    rejected, rest, c = (q - p).clamp(min=0), residual(p, q, p), 1 / beside_each(q)
    at_rest, at_q = nodes.of_text(rest)[:, None], nodes.of_text(q)[:, None] * c
    accepted = at_rest.minimum(at_q) * text_ends(nodes, is_end)[:, None]
    left = (at_rest - at_q).clamp(min=0) * _ending_of_rejected(rest, q, c, is_end)
    second = (rejected * (accepted + left)).sum(dim=1)
    return ratio(first + second, nodes.of_text(p))


def _ending_of_rejected(rest: Tensor, q: Tensor, c: Tensor, is_end: Tensor) -> Tensor:  # [n, V]
    """Return for each t: P(the second draw ends the text | both were rejected, t was the first).

    It is rejected with (c_t q - rest)+, where t itself has nothing of `rest`. Tokens are sorted by
    rest / q, so that for any c those with something left are the first ones.
    """
    order = (rest / q).nan_to_num(nan=torch.inf, posinf=torch.inf).argsort(dim=1)
    q_sorted, rest_sorted = q.gather(1, order), rest.gather(1, order)
    ends = is_end.expand(len(q), -1).gather(1, order)
    place = torch.searchsorted((rest_sorted / q_sorted).nan_to_num(nan=torch.inf), c)
    above = [_sums(values.flip(1)).flip(1).gather(1, place) for values in (rest_sorted, q_sorted)]
    below = [_sums(values * ends).gather(1, place) for values in (rest_sorted, q_sorted)]
    # What q lacks of `rest` and what it has too much of are the same.
    mass = (above[0] - c * above[1]).clamp(min=0)
    of_ends = (c * (below[1] - q * is_end) - below[0]).clamp(min=0)
    return ratio(of_ends, mass)


def _sums(values: Tensor) -> Tensor:  # [n, V] -> [n, V + 1]
    """Return the sums of the first 0, 1, ... V values."""
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))


def _second_behind_end(nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n]
    rest = residual(nodes.p, nodes.q, nodes.p)
    accepted = (_second_accepted(nodes, rest) * is_end).sum(dim=1)
    return ratio(accepted, nodes.of_text(nodes.p))


_INDEPENDENT = ClosedForm(_iid, ends=Independent(covered_iid, _iid))
FORMS: Mapping[Draw, ClosedForm] = {
    Draw.SINGLE: single_draw.FORM,
    Draw.FILTERED: single_draw.FORM,
    Draw.IID: _INDEPENDENT,
    Draw.PATHS: _INDEPENDENT,
    Draw.WITHOUT_REPLACEMENT: ClosedForm(
        without_replacement,
        ends=TwoWithoutReplacement(single_draw.ENDS, _second_ended, _second_behind_end),
    ),
}
