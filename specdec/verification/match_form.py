"""`Match` given the text: the verifier's own draw is looked for among candidates that know nothing.

No p is needed: P(a child bears x) is a matter of q alone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, Passes, TextNodes
from specdec.core.values import Draw
from specdec.verification.ends import (
    Independent,
    TopAndLast,
    TwoWithoutReplacement,
    ending,
    top_and_others,
)
from specdec.verification.without_replacement import NUM_SEQUENCES, any_of, beside_each


def _iid(nodes: TextNodes) -> Tensor:  # [n, K]
    """Count the first of i.i.d. draws that bears x."""
    drawn = nodes.of_text(nodes.q)
    return torch.stack([drawn * (1 - drawn) ** k for k in range(nodes.num_children)], dim=1)


def _covered(nodes: TextNodes) -> list[Tensor]:  # of [n, V]
    """Return P(the draw is this token, and accepted | x), draw by draw: nothing but x is."""
    drawn = nodes.of_text(nodes.q)[:, None]
    only_text = torch.zeros_like(nodes.q).scatter(1, nodes.token_ids[:, None], drawn)
    return [only_text] * nodes.num_children


def _top_plus_one(nodes: TextNodes) -> Tensor:  # [n, K]
    is_top, others = top_and_others(nodes)
    return torch.cat([is_top.to(others.dtype), nodes.of_text(others)[:, None]], dim=1)


def without_replacement(nodes: TextNodes) -> Tensor:  # [n, K]
    """Return the shares of draws without replacement; beyond two over drawn sequences of others."""
    q, num = nodes.q, nodes.num_children
    at_x = nodes.of_text(q)
    columns = [at_x]
    others = q.scatter(1, nodes.token_ids[:, None], 0.0)
    if num > 1:
        columns.append(at_x * (others / beside_each(q)).sum(dim=1))
    if num > 2:
        drawn = [_drawn_late(at_x, others, num, nodes.generator) for _ in range(NUM_SEQUENCES)]
        columns += list(torch.stack(drawn).mean(dim=0).unbind(1))
    return torch.stack(columns, dim=1)


def _drawn_late(
    at_x: Tensor, others: Tensor, num: int, generator: torch.Generator | None
) -> Tensor:  # [n, K - 2]
    """Draw others than x first; return P(x is drawn third), ... given these."""
    columns: list[Tensor] = []
    live, tiny = torch.ones_like(at_x), torch.finfo(at_x.dtype).tiny
    for number in range(num):
        # Added up anew: what a nearly sure draft leaves is lost when its token is subtracted.
        share = at_x / (at_x + others.sum(dim=1)).clamp(min=tiny)
        if number > 1:
            columns.append(live * share)
        live = live * (1 - share)
        others = others.scatter(1, any_of(others, generator), 0.0)
    return torch.stack(columns, dim=1)


def _second_ended(nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n]
    """Return P(the second draw ends the text): the candidates know nothing of x."""
    others = ending(nodes.q, is_end)[:, None] - nodes.q * is_end  # that end it, too
    return (nodes.q * others / beside_each(nodes.q)).sum(dim=1)


def _second_behind_end(nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n]
    second = nodes.of_text(nodes.q)[:, None] / beside_each(nodes.q)
    return (nodes.q * is_end * second).sum(dim=1)


def _passing(nodes: TextNodes) -> Tensor:  # [n]
    """Return what a filter lets pass: whether a token does has nothing to do with x."""
    return nodes.q.double().sum(dim=-1)


_ENDS = Independent(_covered, _iid, needs_p=False)
_DRAWN = ClosedForm(_iid, needs_p=False, passes=Passes(_passing, needs_p=False), ends=_ENDS)
_TOP_PLUS_ONE = ClosedForm(_top_plus_one, needs_p=False, ends=TopAndLast(_ENDS))
_WITHOUT_REPLACEMENT = ClosedForm(
    without_replacement,
    needs_p=False,
    ends=TwoWithoutReplacement(_ENDS, _second_ended, _second_behind_end),
)
FORMS: Mapping[Draw, ClosedForm] = {
    Draw.SINGLE: _DRAWN,
    Draw.FILTERED: _DRAWN,
    Draw.IID: _DRAWN,
    Draw.PATHS: _DRAWN,
    Draw.TOP_PLUS_ONE: _TOP_PLUS_ONE,
    Draw.WITHOUT_REPLACEMENT: _WITHOUT_REPLACEMENT,
}
