"""One draw that is accepted with min(1, p/q): what most rules are on a chain, given the text."""

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, Passes, TextNodes
from specdec.verification.ends import Independent
from specdec.verification.odds import ratio


def _shares(nodes: TextNodes) -> Tensor:  # [n, 1]
    """Return min(1, q/p) (Leviathan et al. 2023)."""
    return ratio(nodes.of_text(nodes.q).double(), nodes.log_p.exp())[:, None]


def passes(nodes: TextNodes) -> Tensor:  # [n]
    """Return P(a drawn token was submitted | x).

    q is what a filter lets pass, not renormalised. The text's token was the submitted one, or is
    from the residual, which is drawn from if a token was rejected or was withheld.
    """
    p, q = nodes.p, nodes.q
    excess = (q - p).clamp(min=0).double().sum(dim=1)  # P(submitted and rejected)
    missing = (p - q).clamp(min=0).double()
    rejected = (excess / missing.sum(dim=1).clamp(min=torch.finfo(p.dtype).tiny)).clamp(max=1)
    own, accepted = nodes.of_text(p).double(), nodes.of_text(p.minimum(q)).double()
    return ratio(accepted + nodes.of_text(missing) * rejected, own)


def covered(nodes: TextNodes) -> list[Tensor]:  # of [n, V]
    """Return P(the draw is this token, and accepted)."""
    return [nodes.p.minimum(nodes.q)]


def _shares_of_rows(nodes: TextNodes) -> Tensor:  # [n, 1]
    return ratio(nodes.of_text(nodes.p.minimum(nodes.q)), nodes.of_text(nodes.p))[:, None]


ENDS = Independent(covered, _shares_of_rows)
FORM = ClosedForm(_shares, needs_p=False, passes=Passes(passes), ends=ENDS)
