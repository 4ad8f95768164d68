"""What a draft becomes if of several i.i.d. paths the first in an order is taken."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.closed_form import TextNodes
from specdec.core.ordering import ascending_order
from specdec.core.shown import rows_of


class Order(NamedTuple):
    """An order of the tokens after each of I nodes, the best last, and q in that order."""

    ranks: Tensor  # [I, V] int64: where a token stands
    worse: Tensor  # [I, V] float64: what q gives to the tokens before each one

    @classmethod
    def of(cls, p: Tensor, q: Tensor) -> "Order":  # [I, V] each
        """Order tokens by p / q, the largest last, of equal ones the larger number."""
        order = ascending_order(_liking(p, q), stable=True)
        sorted_q = q.gather(1, order).double()
        worse = torch.zeros_like(sorted_q).scatter(1, order, sorted_q.cumsum(dim=1) - sorted_q)
        places = torch.arange(q.shape[1], device=q.device).expand_as(order)
        return cls(torch.zeros_like(order).scatter(1, order, places), worse.clamp_(min=0))

    def at(self, places: Sequence[int]) -> "Order":
        """Return the same for some of the nodes."""
        return Order(rows_of(self.ranks, places), rows_of(self.worse, places))


class Tilt(NamedTuple):
    """How the choice among K paths changes q at I nodes on the chosen path.

    Let q(h) be the probability of one path to begin with h, and L(h) that of all beginnings of the
    same length behind h in the lexicographic order. The best of K i.i.d. paths begins with h with
    probability (L + q)^K - L^K, since then all of them do so or are worse. With t = q / (L + q) the
    next token y has the probability

        q(y) G(a, b) / G(1, 1 - t),   b = 1 - t + t W(y),   a = b + t q(y),

    where W is what q gives to worse tokens and G(a, b) = (a^K - b^K) / (a - b), a sum of products
    in which nothing cancels. The next t is t q(y) / a.
    """

    share: Tensor  # [I] float64: t
    num_paths: Tensor  # [I]: K
    most_paths: int  # of all nodes: no waiting for the device

    def of_tokens(
        self, order: Order, q: Tensor, token_ids: Tensor
    ) -> tuple[Tensor, Tensor]:  # [I, C] each
        """Return the tilted probabilities of some tokens, and the shares behind them."""
        a, b = self._ends(order.worse.gather(1, token_ids), q)
        return q * self._weight(a, b), self._below(q, a)

    def of_text(self, worse: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:  # [I] each
        """Return how much likelier one token of each node becomes, and the shares behind them."""
        a, b = self._ends(worse[:, None], q[:, None])
        return self._weight(a, b).squeeze(1), self._below(q[:, None], a).squeeze(1)

    def applied(self, order: Order, q: Tensor) -> Tensor:  # [I, V] -> [I, V]
        """Return the tilted distributions."""
        return (q * self._weight(*self._ends(order.worse, q.double()))).to(q.dtype)

    def _ends(self, worse: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:  # [I, C]
        b = 1 - self.share[:, None] * (1 - worse)
        return b + self.share[:, None] * q, b

    def _below(self, q: Tensor, a: Tensor) -> Tensor:  # [I, C] each
        return self.share[:, None] * q / a.clamp(min=_TINY)

    def _weight(self, a: Tensor, b: Tensor) -> Tensor:  # [I, C]
        share = self.share[:, None]
        ones = torch.ones_like(share)
        return self._sums(a, b) / self._sums(ones, 1 - share)

    def _sums(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the sum over k < K of a^(K - 1 - k) b^k."""
        total = power = torch.ones_like(a)
        for k in range(1, self.most_paths):
            power = power * b
            total = torch.where(k < self.num_paths[:, None], total * a + power, total)
        return total


def worse_than_text(nodes: TextNodes) -> Tensor:  # [n] float64
    """Return what q gives to the tokens that are worse than the text's, without sorting."""
    liking = _liking(nodes.p, nodes.q)
    own, token_ids = nodes.of_text(liking)[:, None], nodes.token_ids[:, None]
    ids = torch.arange(liking.shape[1], device=liking.device)
    is_worse = (liking < own) | ((liking == own) & (ids < token_ids))
    return (nodes.q * is_worse).sum(dim=1, dtype=torch.float64)


def _liking(p: Tensor, q: Tensor) -> Tensor:  # [..., V]
    """Return p / q; what neither wants comes last."""
    return (p / q).nan_to_num(nan=0.0, posinf=torch.inf)


_TINY = torch.finfo(torch.float64).tiny
