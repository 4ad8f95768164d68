"""How likely a candidate is to end the text, given what the text goes on with.

Nothing is submitted below a candidate that ends the text. Let a node have K children, some of them
inner nodes, and let x be the token that the text has there. `ended` is P(the k-th child ends the
text | x), and `stuck` P(a child was accepted, and all inner ones end the text | x): the step then
goes no deeper. What the text has behind x tells nothing more of them, since it has the verifier's
law whatever was accepted.

Every function takes p and q [n, V] at n nodes, the text's token x [n] after each, K, and which
tokens would end the text there, `is_end` [n or 1, V] bool.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.values import Draw
from specdec.replay import shares
from specdec.replay.shares import at, beside_each
from specdec.verification.odds import ratio, residual

CELLS_AT_ONCE = 1 << 21  # numbers of one tensor where laws are sorted


class Nodes(NamedTuple):
    """Nodes at which K children are drawn, and a rule decides on them."""

    rule: str  # as the command line calls it
    draw: Draw
    p: Tensor  # [n, V]; of `match`, which need not know it, anything
    q: Tensor  # [n, V]
    token_ids: Tensor  # [n]
    num: int  # K
    is_end: Tensor  # [n or 1, V] bool

    def of(self, law: Tensor) -> Tensor:  # [n, V] -> [n] float64
        """Return what a law gives to tokens that end the text."""
        return (law * self.is_end).sum(dim=1, dtype=torch.float64)


def ended(nodes: Nodes) -> Tensor:  # [n, K], or fewer columns: of further ones nothing is known
    """Return P(the k-th child ends the text | x)."""
    if nodes.draw is Draw.WITHOUT_REPLACEMENT:
        return _ended_without_replacement(nodes)
    if nodes.draw is Draw.TOP_PLUS_ONE:
        fixed, last = _fixed_and_last(nodes)
        return torch.cat([fixed.double(), _ended_independent(last)], dim=1)
    return _ended_independent(nodes)


def stuck(nodes: Nodes, inner: Sequence[int]) -> Tensor | None:  # [n]
    """Return P(a child was accepted, and all `inner` ones end the text | x).

    Of texts that x does not end; None where no closed form is known.
    """
    if nodes.draw is Draw.WITHOUT_REPLACEMENT:
        return _stuck_without_replacement(nodes, inner) if nodes.num == 2 else None
    if nodes.draw is Draw.TOP_PLUS_ONE:
        return _stuck_top_plus_one(nodes, inner)
    return _stuck_independent(nodes, inner)


# --- Independent draws ---


def _independent(nodes: Nodes) -> tuple[Iterable[Tensor], Tensor]:
    """Return P(the draw is this token, and accepted | it is asked about), and shares [n, K]."""
    _, _, p, q, token_ids, num, _ = nodes
    if nodes.rule == "match":
        own = torch.zeros_like(q).scatter(1, token_ids[:, None], at(q, token_ids)[:, None])
        return [own] * num, shares.match_iid(p, q, token_ids, num)
    if nodes.rule == "kseq":
        return shares.covered_by_kseq(p, q, num), shares.kseq(p, q, token_ids, num)
    # Of one draw that is every rule.
    covered = shares.covered_by_rejection(p, q, num)
    return covered, shares.rejection_iid(p, q, token_ids, num)


def _refused(nodes: Nodes) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the share of each draw [n], and P(it ends the text | it was refused) [n]."""
    covered, accepted = _independent(nodes)
    for once, share in zip(covered, accepted.double().unbind(dim=1), strict=True):
        refused = (nodes.q - once).clamp(min=0)
        yield share, ratio(nodes.of(refused), refused.sum(dim=1, dtype=torch.float64))


def _ended_independent(nodes: Nodes) -> Tensor:  # [n, K]
    """Look at each draw by itself.

    One behind the accepted one is like any other, the accepted one is x, and those before were
    refused, whatever the text goes on with.
    """
    drawn, own = nodes.of(nodes.q), _own(nodes)
    before = torch.zeros_like(drawn)
    found: list[Tensor] = []
    for accepted, refused in _refused(nodes):
        later = (1 - before - accepted).clamp(min=0)
        found.append(before * drawn + accepted * own + later * refused)
        before = before + accepted
    return torch.stack(found, dim=1)


def _stuck_independent(nodes: Nodes, inner: Sequence[int]) -> Tensor:  # [n]
    drawn = nodes.of(nodes.q)
    found, lost = torch.zeros_like(drawn), torch.ones_like(drawn)
    for number, (accepted, refused) in enumerate(_refused(nodes)):
        if number in inner:
            lost = lost * refused
        else:
            found = found + accepted * lost * drawn ** sum(each > number for each in inner)
    return found


def _own(nodes: Nodes) -> Tensor:  # [n] float64
    """Say whether x ends the text."""
    return at(nodes.is_end.expand(len(nodes.token_ids), -1), nodes.token_ids).double()


# --- The likeliest, and one draw ---


def _fixed_and_last(nodes: Nodes) -> tuple[Tensor, Nodes]:
    """Return whether each fixed child ends the text or is not there [n, K - 1], and the draw."""
    mass, top = nodes.q.topk(min(nodes.num - 1, nodes.q.shape[1]), dim=1)
    is_end = nodes.is_end.expand(len(top), -1)
    fixed = torch.ones(len(top), nodes.num - 1, dtype=torch.bool, device=top.device)
    fixed[:, : top.shape[1]] = is_end.gather(1, top) | (mass <= 0)
    _, others = shares.top_and_others(nodes.q, nodes.token_ids, nodes.num)
    return fixed, nodes._replace(q=others, draw=Draw.SINGLE, num=1)


def _stuck_top_plus_one(nodes: Nodes, inner: Sequence[int]) -> Tensor:  # [n]
    fixed, last = _fixed_and_last(nodes)
    is_top, others = shares.top_and_others(nodes.q, nodes.token_ids, nodes.num)
    lost = fixed[:, [each for each in inner if each < nodes.num - 1]].all(dim=1)
    by_top = is_top.any(dim=1).double()
    if nodes.num - 1 in inner:
        is_there = others.sum(dim=1) > 0
        return lost * by_top * _ended_independent(last)[:, 0].where(is_there, 1.0)
    return lost * (by_top + _independent(last)[1][:, 0].double())


# --- Two draws without replacement ---
#
# Behind a first draw t the second one's law is q without t, c_t q with c_t = 1 / (1 - q(t)).


def _ended_without_replacement(nodes: Nodes) -> Tensor:  # [n, 2] at most
    first = _ended_independent(nodes._replace(draw=Draw.SINGLE, num=1))
    if nodes.num == 1:
        return first
    second = _second_of_match if nodes.rule == "match" else _second_of_rejection
    return torch.cat([first, _in_pieces(second, nodes)[:, None]], dim=1)


def _stuck_without_replacement(nodes: Nodes, inner: Sequence[int]) -> Tensor:  # [n]
    return _in_pieces(_first_is_end if 0 in inner else _second_is_end, nodes)


def _in_pieces(answer: Callable[[Nodes], Tensor], nodes: Nodes) -> Tensor:  # [n]
    """Answer for some rows at a time, in float64: what q leaves beside a token may be little."""
    rows = max(1, CELLS_AT_ONCE // nodes.q.shape[1])
    found: list[Tensor] = []
    for start in range(0, len(nodes.q), rows):
        some = slice(start, start + rows)
        found.append(
            answer(
                nodes._replace(
                    p=nodes.p[some].double(),
                    q=nodes.q[some].double(),
                    token_ids=nodes.token_ids[some],
                    is_end=nodes.is_end if len(nodes.is_end) == 1 else nodes.is_end[some],
                )
            )
        )
    return torch.cat(found)


def _second_of_match(nodes: Nodes) -> Tensor:  # [n]
    """The candidates know nothing of the text."""
    others = nodes.of(nodes.q)[:, None] - nodes.q * nodes.is_end  # that end it, too
    return (nodes.q * others / beside_each(nodes.q)).sum(dim=1)


def _second_of_rejection(nodes: Nodes) -> Tensor:  # [n]
    """x was accepted first, or some t was refused: then x was accepted second, or is left over."""
    _, _, p, q, token_ids, _, _ = nodes
    first = at(p.minimum(q), token_ids) * _behind_text(nodes)
    refused, rest, c = (q - p).clamp(min=0), residual(p, q, p), 1 / beside_each(q)
    at_rest, at_q = at(rest, token_ids)[:, None], at(q, token_ids)[:, None] * c
    accepted = at_rest.minimum(at_q) * _own(nodes)[:, None]
    left = (at_rest - at_q).clamp(min=0) * _ending_of_refused(rest, q, c, nodes.is_end)
    second = (refused * (accepted + left)).sum(dim=1)
    return ratio(first + second, at(p, token_ids))


def _ending_of_refused(rest: Tensor, q: Tensor, c: Tensor, is_end: Tensor) -> Tensor:  # [n, V]
    """Return for each t: P(the second draw ends the text | both were refused, t was the first).

    It is refused with (c_t q - rest)+, where t itself has nothing of `rest`. Tokens are sorted by
    rest / q, so that for any c those with something left are the first ones.
    """
    order = (rest / q).nan_to_num(nan=torch.inf, posinf=torch.inf).argsort(dim=1)
    q_sorted, rest_sorted = q.gather(1, order), rest.gather(1, order)
    ends = is_end.expand(len(q), -1).gather(1, order)
    place = torch.searchsorted((rest_sorted / q_sorted).nan_to_num(nan=torch.inf), c)
    above = [_sums(each.flip(1)).flip(1).gather(1, place) for each in (rest_sorted, q_sorted)]
    below = [_sums(each * ends).gather(1, place) for each in (rest_sorted, q_sorted)]
    # What q lacks of `rest` and what it has too much of are the same.
    some = (above[0] - c * above[1]).clamp(min=0)
    ending = (c * (below[1] - q * is_end) - below[0]).clamp(min=0)
    return ratio(ending, some)


def _sums(values: Tensor) -> Tensor:  # [n, V] -> [n, V + 1]
    """Return the sums of the first 0, 1, ... V values."""
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))


def _behind_text(nodes: Nodes) -> Tensor:  # [n]
    """Return P(the second draw ends the text | the first is x)."""
    others = nodes.q.scatter(1, nodes.token_ids[:, None], 0.0)
    return ratio(nodes.of(others), others.sum(dim=1))


def _first_is_end(nodes: Nodes) -> Tensor:  # [n]
    """Return P(the second draw was accepted, and the first ends the text | x)."""
    _, _, p, q, token_ids, _, is_end = nodes
    second = at(q, token_ids)[:, None] / beside_each(q)
    if nodes.rule == "match":
        return (q * is_end * second).sum(dim=1)
    refused = (q - p).clamp(min=0) * is_end
    accepted = second.minimum(at(residual(p, q, p), token_ids)[:, None])
    return ratio((refused * accepted).sum(dim=1), at(p, token_ids))


def _second_is_end(nodes: Nodes) -> Tensor:  # [n]
    """Return P(the first draw was accepted, and the second ends the text or is not there | x)."""
    q, token_ids = nodes.q, nodes.token_ids
    accepted = at(q, token_ids)
    if nodes.rule != "match":
        accepted = shares.single(at(nodes.p, token_ids), accepted)
    alone = q.scatter(1, token_ids[:, None], 0.0).sum(dim=1) <= 0
    return accepted * _behind_text(nodes).where(~alone, 1.0)
