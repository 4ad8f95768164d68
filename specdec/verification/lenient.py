"""Rejection that lets more pass: the draft counts as less likely than it is. Not lossless."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from specdec.core.errors import require_share
from specdec.core.shown import Shown, rows_of
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.divergence import divergences
from specdec.verification.odds import Odds, decide, ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.rejection import recursive_rejection


class Lenient(Batched):
    """Accept x with probability min(1, p(x) / (l q(x))), else draw from norm((p - l q)+).

    The lenience l in (0, 1] of Leviathan et al. 2023, appendix A.5 (and Zhou et al. 2024,
    DistillSpec); with l = 1 it is token-level rejection. A point mass has q = 1.
    """

    lossless_for = frozenset[Draw]()
    defined_for = frozenset({Draw.DETERMINISTIC, Draw.SINGLE})
    needs_q = True

    def __init__(self, lenience: float = 0.5):
        require_share("lenience", lenience)
        self._lenience = lenience

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        nodes = CandidateNodes.of(shown)
        if shown.draw is Draw.DETERMINISTIC:
            odds = _point_masses(nodes, self._lenience)
        else:
            odds = recursive_rejection(nodes, shown.draw, self._lenience)
        taken = _accepted_mass(nodes, odds, shown.draw, self._lenience)
        rest = odds.rest(range(len(nodes.numbers)))
        emitted_probs = taken + (1 - taken.sum(dim=-1, keepdim=True)) * rest
        return decide(shown, nodes, replace(odds, strays=divergences(emitted_probs, nodes.p)))


def _point_masses(nodes: CandidateNodes, lenience: float) -> Odds:
    """Ask candidates of q = 1 in turn: one that is refused leaves p without its token."""
    ids = nodes.token_ids
    again = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(dim=-1)  # a sibling had the token
    probs = nodes.p.gather(1, ids).masked_fill(again, 0.0)
    left = 1 - (probs.cumsum(dim=1) - probs)  # of p, when a candidate's turn comes
    accept = ratio(probs, lenience * left.clamp(min=torch.finfo(left.dtype).tiny))
    some = 1 - (1 - accept).prod(dim=1)
    rest = residual(nodes.p.scatter(1, ids, 0.0), torch.zeros_like(nodes.p), nodes.p)
    return Odds(overlaps(nodes), accept, some, partial(rows_of, rest))


def _accepted_mass(
    nodes: CandidateNodes, odds: Odds, draw: Draw, lenience: float
) -> Tensor:  # [I, V]
    """Return P(a candidate is accepted and it is v)."""
    if draw is Draw.SINGLE:
        return nodes.q.minimum(nodes.p / lenience)
    before = (1 - odds.accept).cumprod(dim=1).roll(1, dims=1)
    before[:, :1] = 1.0
    return torch.zeros_like(nodes.p).scatter_add(1, nodes.token_ids, before * odds.accept)
