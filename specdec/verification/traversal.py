"""Traversal verification: from the leaves to the root, so that a path is judged as a whole."""

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm
from specdec.core.shown import Shown
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.block import CHAIN_FORM
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.leaves_first import RefusedLevel, decide_from_leaves
from specdec.verification.odds import ratio, residual
from specdec.verification.rejection import probs_of_draw


class Traversal(Batched):
    """Ask the leftmost leaf; if it is refused, drop it and ask what is the leftmost leaf then.

    (Weng et al. 2025.) A node is accepted with the clipped ratio of its whole path, and each
    refused child leaves its parent with a residual p, another acceptance probability and, without
    replacement, a smaller q. On a chain it is block verification. Looks ahead as that does, so
    noise must never be used again in a later step.
    """

    lossless_for = frozenset(
        {Draw.SINGLE, Draw.IID, Draw.PATHS, Draw.WITHOUT_REPLACEMENT, Draw.FILTERED}
    )
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        return decide_from_leaves(shown, _refuse_all)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay of chains, which are blocks; of trees no closed form is known."""
        return CHAIN_FORM if draw in (Draw.SINGLE, Draw.FILTERED) else None


def _refuse_all(here: CandidateNodes, own: Tensor, draw: Draw) -> RefusedLevel:
    """Refuse the candidates of some nodes one after another; the root is always accepted."""
    p = here.p
    reached = list[Tensor]()
    for number in range(here.width):
        token_ids = here.token_ids[:, number : number + 1]
        q = probs_of_draw(here, draw, number)
        ahead = own[:, None] * p
        reached.append(ratio(ahead.gather(1, token_ids), q.gather(1, token_ids)))
        excess = (ahead - q).clamp_(min=0).sum(dim=-1)
        total = excess + 1 - own
        left = torch.where(total > 0, excess / total, 1.0)
        rest = residual(ahead, q, p)
        drawn = here.drawn(number)
        if drawn is not None:
            left, rest = left.where(drawn.squeeze(1), own), rest.where(drawn, p)
        own, p = left, rest
    return RefusedLevel(here, torch.cat(reached, dim=1), own, p)
