"""K-SEQ: k i.i.d. candidates, all asked against one and the same scaled-down p."""

from functools import partial

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.on_device import on_device
from specdec.core.shown import Shown, rows_of
from specdec.core.values import Draw, Verdict
from specdec.verification import single_draw
from specdec.verification.batched import Batched
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.ends import Independent
from specdec.verification.odds import HAIR, Odds, decide, ratio
from specdec.verification.overlap import overlaps

NUM_ROUNDS, NUM_STEPS = 6, 4  # of the search for rho: its error is (k - 1) / 4096


class KSeq(Batched):
    """Accept each of k candidates with min(1, p / (rho q)) (Sun et al. 2023, SpecTr, algorithm 2).

    With beta = sum_v min(q, p / rho) the k candidates accept with 1 - (1 - beta)^k together, and
    the residual is p less what they accept, token by token. It has no negative entry if
    1 - (1 - beta)^k <= rho beta; the smallest such rho accepts most, and any larger one up to k is
    lossless too, so that rho need not be exact.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.IID, Draw.PATHS, Draw.FILTERED})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        nodes = CandidateNodes.of(shown)
        return decide(shown, nodes, _odds(nodes))

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        if draw in (Draw.IID, Draw.PATHS):
            return _IID
        return single_draw.FORM if draw in self.defined_for else None


def _odds(nodes: CandidateNodes) -> Odds:
    p, q = nodes.p, nodes.q
    k = on_device(nodes.counts, p.device, p.dtype)[:, None]
    rho = smallest_rho(p, q, k) if nodes.width > 1 else k  # then both ends are 1
    scaled = p / rho
    accept = ratio(scaled.gather(1, nodes.token_ids), q.gather(1, nodes.token_ids))
    once = scaled.minimum(q)
    beta = once.sum(dim=-1, keepdim=True)
    some = 1 - (1 - beta) ** k
    per_beta = torch.where(beta > 0, some / beta, k)
    rest = (p - once * per_beta).clamp_(min=0).add_(p, alpha=HAIR)
    return Odds(overlaps(nodes), accept, some.squeeze(1), partial(rows_of, rest))


def smallest_rho(p: Tensor, q: Tensor, k: Tensor) -> Tensor:  # [I, V], [I, V], [I, 1] -> [I, 1]
    """Search between 1 and k in ever finer steps; what is returned is on the lossless side."""
    low, high = torch.ones_like(k), k
    for _ in range(NUM_ROUNDS):
        step = (high - low) / NUM_STEPS
        tried = low + step * torch.arange(1, NUM_STEPS, dtype=p.dtype, device=p.device)  # [I, S]
        scaled = p[:, None] / tried[..., None]  # [I, S, V]: no second one of that size
        beta = torch.minimum(scaled, q[:, None], out=scaled).sum(dim=-1)
        fails = (1 - (1 - beta) ** k > tried * beta).sum(dim=-1, keepdim=True)
        low, high = low + fails * step, torch.minimum(high, low + (fails + 1) * step)
    return high


def _covered(nodes: TextNodes) -> list[Tensor]:  # of [n, V]
    """Return P(the draw is this token, and accepted | it is asked about): the same for each."""
    p, num = nodes.p, nodes.num_children
    k = p.new_full((len(p), 1), float(num))
    rho = smallest_rho(p, nodes.q, k) if num > 1 else k
    return [(p / rho).minimum(nodes.q)] * num


def _shares(nodes: TextNodes) -> Tensor:  # [n, K]
    """Ask each of the K draws against the same p / rho."""
    once, *_ = _covered(nodes)
    rejected = 1 - once.sum(dim=1)
    first = ratio(nodes.of_text(once), nodes.of_text(nodes.p))
    return torch.stack([first * rejected**k for k in range(nodes.num_children)], dim=1)


_IID = ClosedForm(_shares, ends=Independent(_covered, _shares))
