"""How likely a candidate is to end the text: see `specdec.core.closed_form.Ends`.

Each class is for one way of drawing; what a rule makes of the draws it is given as functions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specdec.core.closed_form import TextNodes
from specdec.verification.odds import ratio

CELLS_AT_ONCE = 1 << 21  # numbers of one tensor where distributions are sorted

OfEnds = Callable[[TextNodes, Tensor], Tensor]  # of nodes and `is_end`, [n]


def ending(probs: Tensor, is_end: Tensor) -> Tensor:  # [n, V], [n or 1, V] -> [n] float64
    """Return what distributions give to tokens that end the text."""
    return (probs * is_end).sum(dim=1, dtype=torch.float64)


def text_ends(nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n] float64
    """Say whether x ends the text."""
    return nodes.of_text(is_end.expand(len(nodes.token_ids), -1)).double()


def behind_text(nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n]
    """Return P(the second draw ends the text | the first is x), of draws without replacement."""
    others = nodes.q.scatter(1, nodes.token_ids[:, None], 0.0)
    return ratio(ending(others, is_end), others.sum(dim=1))


def top_and_others(nodes: TextNodes) -> tuple[Tensor, Tensor]:
    """Return where x is among the K - 1 likeliest [n, K - 1], and q without these, renormalised."""
    q, num_top = nodes.q, nodes.num_children - 1
    mass, top = q.topk(min(num_top, q.shape[1]), dim=1)
    others = q.scatter(1, top, 0.0)
    others = others / others.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    is_top = (top == nodes.token_ids[:, None]) & (mass > 0)
    beyond = num_top - top.shape[1]
    return torch.nn.functional.pad(is_top, (0, beyond)), others


@dataclass(frozen=True)
class Independent:
    """Draws that know nothing of each other: one, or several i.i.d. ones."""

    # Draw by draw, each [n, V]: P(it is this token, and accepted | it is asked about, x).
    covered: Callable[[TextNodes], Iterable[Tensor]]
    shares: Callable[[TextNodes], Tensor]  # [n, K]
    needs_p: bool = True

    def ended(self, nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n, K]
        """Look at each draw by itself.

        One behind the accepted one is like any other, the accepted one is x, and those before were
        rejected, whatever the text goes on with.
        """
        drawn, own = ending(nodes.q, is_end), text_ends(nodes, is_end)
        before = torch.zeros_like(drawn)
        columns: list[Tensor] = []
        for accepted, rejected in self._in_turn(nodes, is_end):
            later = (1 - before - accepted).clamp(min=0)
            columns.append(before * drawn + accepted * own + later * rejected)
            before = before + accepted
        return torch.stack(columns, dim=1)

    def stuck(self, nodes: TextNodes, is_end: Tensor, inner: Sequence[int]) -> Tensor:  # [n]
        """Sum over which child was accepted: none of `inner`."""
        drawn = ending(nodes.q, is_end)
        total, lost = torch.zeros_like(drawn), torch.ones_like(drawn)
        for number, (accepted, rejected) in enumerate(self._in_turn(nodes, is_end)):
            if number in inner:
                lost = lost * rejected
            else:
                total = total + accepted * lost * drawn ** sum(child > number for child in inner)
        return total

    def _in_turn(self, nodes: TextNodes, is_end: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the share of each draw [n], and P(it ends the text | it was rejected) [n]."""
        shares = self.shares(nodes).double().unbind(dim=1)
        for once, share in zip(self.covered(nodes), shares, strict=True):
            rejected = (nodes.q - once).clamp(min=0)
            mass = rejected.sum(dim=1, dtype=torch.float64)
            yield share, ratio(ending(rejected, is_end), mass)


@dataclass(frozen=True)
class TopAndLast:
    """The likeliest tokens, which are known, and one draw from the others."""

    last: Independent  # of that draw

    @property
    def needs_p(self) -> bool:
        """What the draw needs."""
        return self.last.needs_p

    def ended(self, nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n, K]
        """Look the fixed children up; the last one is a single draw."""
        fixed = self._fixed(nodes, is_end).double()
        return torch.cat([fixed, self.last.ended(_last_draw(nodes), is_end)], dim=1)

    def stuck(self, nodes: TextNodes, is_end: Tensor, inner: Sequence[int]) -> Tensor:  # [n]
        """Ask whether the fixed ones among `inner` all end the text, and how often the last."""
        is_top, others = top_and_others(nodes)
        last, num_top = _last_draw(nodes), nodes.num_children - 1
        fixed = self._fixed(nodes, is_end)
        lost = fixed[:, [child for child in inner if child < num_top]].all(dim=1)
        by_top = is_top.any(dim=1).double()
        if num_top in inner:
            is_there = others.sum(dim=1) > 0
            return lost * by_top * self.last.ended(last, is_end)[:, 0].where(is_there, 1.0)
        return lost * (by_top + self.last.shares(last)[:, 0].double())

    @staticmethod
    def _fixed(nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n, K - 1] bool
        """Return whether each fixed child ends the text or is not there."""
        num_top = nodes.num_children - 1
        mass, top = nodes.q.topk(min(num_top, nodes.q.shape[1]), dim=1)
        is_end = is_end.expand(len(top), -1)
        fixed = torch.ones(len(top), num_top, dtype=torch.bool, device=top.device)
        fixed[:, : top.shape[1]] = is_end.gather(1, top) | (mass <= 0)
        return fixed


def _last_draw(nodes: TextNodes) -> TextNodes:
    """Return the nodes as those of one child, drawn from what the likeliest tokens leave."""
    return replace(nodes, q=top_and_others(nodes)[1], num_children=1)


@dataclass(frozen=True)
class TwoWithoutReplacement:
    """Draws without replacement: of the third and later ones nothing is known."""

    first: Independent  # of the first draw alone
    second_ended: OfEnds  # P(the second draw ends the text | x)
    second_behind_end: OfEnds  # P(the second draw was accepted, and the first ends the text | x)

    @property
    def needs_p(self) -> bool:
        """What the first draw needs."""
        return self.first.needs_p

    def ended(self, nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n, 2] at most
        """Look at the first two draws."""
        first = self.first.ended(replace(nodes, num_children=1), is_end)
        if nodes.num_children == 1:
            return first
        return torch.cat([first, _in_pieces(self.second_ended, nodes, is_end)[:, None]], dim=1)

    def stuck(self, nodes: TextNodes, is_end: Tensor, inner: Sequence[int]) -> Tensor | None:
        """Tell of two children, one of which is in `inner`."""
        if nodes.num_children != 2:
            return None
        answer = self.second_behind_end if 0 in inner else self._first_before_end
        return _in_pieces(answer, nodes, is_end)

    def _first_before_end(self, nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n]
        """Return P(the first draw was accepted, and the second ends the text or is not there)."""
        accepted = self.first.shares(replace(nodes, num_children=1))[:, 0]
        alone = nodes.q.scatter(1, nodes.token_ids[:, None], 0.0).sum(dim=1) <= 0
        return accepted * behind_text(nodes, is_end).where(~alone, 1.0)


def _in_pieces(answer: OfEnds, nodes: TextNodes, is_end: Tensor) -> Tensor:  # [n]
    """Answer for some rows at a time, in float64: what q leaves beside a token may be little."""
    size = max(1, CELLS_AT_ONCE // nodes.q.shape[1])
    parts: list[Tensor] = []
    for start in range(0, len(nodes.q), size):
        rows = slice(start, start + size)
        piece = replace(
            nodes,
            q=nodes.q[rows].double(),
            token_ids=nodes.token_ids[rows],
            log_p=nodes.log_p[rows],
            probs=None if nodes.probs is None else nodes.probs[rows].double(),
        )
        parts.append(answer(piece, is_end if len(is_end) == 1 else is_end[rows]))
    return torch.cat(parts)
