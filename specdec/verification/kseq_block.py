"""K-SEQ on whole blocks: SpecTr's scaled test and block verification in one rule."""

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.on_device import on_device
from specdec.core.shown import Shown
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.block import CHAIN_FORM, shares_along
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.kseq import smallest_rho
from specdec.verification.leaves_first import RefusedLevel, decide_from_leaves
from specdec.verification.odds import ratio, residual


class KSeqBlock(Batched):
    """Ask each of k i.i.d. children with the path above it, and all against one scaled-down p.

    Where c is the clipped ratio of the path to a node, a child x is accepted, it or what is below
    it, with c_x = min(1, c p(x) / (rho q(x))). With beta = sum_v min(q, c p / rho) the k children
    accept with s = 1 - (1 - beta)^k, rho being the smallest for which s <= rho beta, as in K-SEQ
    (Sun et al. 2023, SpecTr); if all are refused the node itself is accepted with
    (c - s) / (1 - s), and what follows is drawn from c p less what its children accept. On a chain
    it is block verification (Sun et al. 2025), on single draws of the root K-SEQ. Both together are
    what SpecTr-GBV (Lin et al. 2026) is about; here nothing is left over for later steps.

    Of K whole paths it accepts min(1, rho min_{1 <= j <= k} q(x_1 .. x_j) / p(x_1 .. x_j)) of the
    texts x, rho >= 1: no text less often than block verification of one path does. Looks ahead, so
    noise must never be used again in a later step.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.IID, Draw.PATHS, Draw.FILTERED})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        return decide_from_leaves(shown, _refuse_all)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay of chains, which are blocks, and of whole paths.

        Where children have children that fork, c decides on rho, and no closed form is known.
        """
        if draw is Draw.PATHS:
            return _PATHS
        return CHAIN_FORM if draw in (Draw.SINGLE, Draw.FILTERED) else None


def _refuse_all(here: CandidateNodes, own: Tensor, draw: Draw) -> RefusedLevel:
    """Refuse all candidates of some nodes, which have the acceptance `own` [n]."""
    ahead = own[:, None] * here.p  # c p
    k = on_device(here.counts, ahead.device, ahead.dtype)[:, None]
    rho = smallest_rho(ahead, here.q, k) if here.width > 1 else k
    scaled = ahead / rho
    once = scaled.minimum(here.q)
    reached = ratio(scaled.gather(1, here.token_ids), here.q.gather(1, here.token_ids))
    beta = once.sum(dim=-1, keepdim=True)
    some = 1 - (1 - beta) ** k
    taken = once * torch.where(beta > 0, some / beta, k)
    excess = (
        (ahead - taken).clamp(min=0).sum(dim=-1)
    )  # c - s, which rounding hides where both are 1
    total = excess + (1 - own)
    left = torch.where(total > 0, excess / total, 1.0)
    return RefusedLevel(here, reached, left, residual(ahead, taken, here.p))


def _note(nodes: TextNodes) -> Tensor:  # [n, 2] float64
    """Note log rho and beta of a root here: of K draws that are asked at c = 1."""
    p = nodes.p
    k = p.new_full((len(p), 1), float(nodes.num_paths))
    rho = smallest_rho(p, nodes.q, k) if nodes.num_paths > 1 else k
    beta = (p / rho).minimum(nodes.q).sum(dim=1, keepdim=True)
    return torch.cat([rho.log(), beta], dim=1).double()


def _shares(nodes: TextNodes) -> Tensor:  # [n, K], below the root [n, 1]
    """Return P(the k-th child is the accepted one | text): at the root one after another is asked.

    P(A >= d | text) is the least of 1 / rho and the products of the first j <= d ratios q/p, times
    the sum over k < K of (1 - beta)^k.
    """
    log_rho, beta = nodes.notes[0].unbind(dim=1)
    share = shares_along(nodes.log_ratios, -log_rho)
    if len(nodes.log_ratios) > 1:
        return share[:, None]
    first = share * (-log_rho).exp()
    return torch.stack([first * (1 - beta) ** k for k in range(nodes.num_children)], dim=1)


_PATHS = ClosedForm(_shares, reads_path=True, note=_note)
