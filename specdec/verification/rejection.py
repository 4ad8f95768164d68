"""Speculative sampling by rejection, token by token."""

import torch
from torch import Tensor

from specdec.core.randomness import Stream
from specdec.core.tree import ROOT
from specdec.core.values import Draw, Outcome, Proposal, Verdict

HAIR = 1e-30  # far below the rounding of any residual that has mass


class Rejection:
    """Accept x ~ q with probability min(1, p(x)/q(x)), else draw from norm((p - q)+).

    Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2. Chains of i.i.d. draws, and
    deterministic candidates in chains and trees. For a point mass q the rule is the same as drawing
    y ~ p and going on to the child y if there is one, which needs no q and one draw per node.
    """

    lossless_for = frozenset({Draw.DETERMINISTIC, Draw.IID})

    def verify(self, proposal: Proposal, target_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree. Row i of `target_probs` [N+1, V] is p after node i."""
        if proposal.draw is Draw.DETERMINISTIC:
            return _follow(proposal, target_probs, stream)
        return _reject_along_chain(proposal, target_probs, stream)


def _follow(proposal: Proposal, target_probs: Tensor, stream: Stream) -> Verdict:
    """Draw from p at each node and walk on while a child bears the drawn token."""
    tree = proposal.tree
    path: list[int] = []
    node = ROOT
    while True:
        token = stream.choose(target_probs[node])
        children = tree.children[node]
        child = next((c for c in children if tree.token_ids[c] == token), None)
        if child is None:
            outcome = Outcome.RECOVERED if children else Outcome.BONUS
            return Verdict(tuple(path), token, outcome)
        path.append(child)
        node = child


def _reject_along_chain(proposal: Proposal, target_probs: Tensor, stream: Stream) -> Verdict:
    """Test the draft tokens in order; the first rejected one is replaced from the residual."""
    tree, q = proposal.tree, proposal.draft_probs
    assert q is not None
    assert tree.is_chain
    num_drafted = tree.num_draft_tokens
    drafted = torch.tensor(tree.token_ids[1:], dtype=torch.int64, device=q.device).unsqueeze(-1)
    ratios = target_probs[:num_drafted].gather(-1, drafted) / q[:num_drafted].gather(-1, drafted)
    for depth, (ratio,) in enumerate(ratios.tolist()):
        if not stream.accept(ratio):
            p = target_probs[depth]
            residual = (p - q[depth]).clamp_(min=0)
            # In exact arithmetic a residual without mass is never drawn from; in floats it can be,
            # and is p then. A hair of p does that without waiting for the device to look.
            residual.add_(p, alpha=HAIR)
            return Verdict(tuple(range(1, depth + 1)), stream.choose(residual), Outcome.RECOVERED)
    path = tuple(range(1, num_drafted + 1))
    return Verdict(path, stream.choose(target_probs[num_drafted]), Outcome.BONUS)
