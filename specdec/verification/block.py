"""Block verification: the longest part of a chain that is as likely as p says, taken jointly."""

import torch
from torch import Tensor

from specdec.core.randomness import Stream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.candidate_nodes import Asked
from specdec.verification.odds import residual
from specdec.verification.overlap import overlaps
from specdec.verification.walk import verdict_on


class Block:
    """Accept the longest beginning of a chain for which a test holds (Sun et al. 2025, Alg. 2).

    With c_i = min(1, c_{i-1} p(x_i)/q(x_i)) and S_i = sum_v (c_i p - q)+ after x_1 .. x_i, the test
    of i holds with probability S_i / (S_i + 1 - c_i), that of the whole chain with c_gamma. All of
    them are independent, and a test that fails does not end the chain: the LAST one that holds
    counts. What follows is drawn from norm((c_i p - q)+). No rule for chains accepts more, on any
    text. Tests look ahead, so noise must never be used again in a later step.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.FILTERED})
    defined_for = lossless_for
    needs_q = True

    def verify(self, proposal: Proposal, target_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one chain. Row i of `target_probs` [N+1, V] is p after node i."""
        num_drafted = proposal.tree.num_draft_tokens
        asked = Asked.of(proposal, target_probs)
        clipped = _clipped_ratios(asked, num_drafted)
        # Nodes with a candidate, shown or withheld: all but, mostly, the last.
        ahead = clipped[: len(asked.nodes), None] * asked.p  # c_i p after x_1 .. x_i
        excess = (ahead - asked.q).clamp_(min=0).sum(dim=-1)  # S_i
        zeros = torch.zeros(num_drafted + 1 - len(asked.nodes), device=clipped.device)
        rows = torch.stack(
            [clipped, torch.cat([excess, zeros]), torch.cat([overlaps(asked), zeros])]
        )
        c, s, overlap = rows.tolist()
        accepted = num_drafted
        while accepted > 0 and not stream.accept(_holds(c, s, accepted, len(asked.nodes))):
            accepted -= 1
        if accepted < len(asked.nodes):
            ours, theirs = ahead[accepted], asked.q[accepted]
            weights = residual(ours, theirs, asked.p[accepted])
        else:
            weights = target_probs[accepted]
        # E[sum_k c_k], with the draw of the k-th token averaged out: sum_v min(c_{k-1} p, q).
        expected = sum(c[node] - s[node] for node in asked.nodes)
        path = range(1, accepted + 1)
        seen = dict(zip(asked.nodes, overlap, strict=False))
        return verdict_on(proposal, asked, path, stream.choose(weights), expected, seen)


def _clipped_ratios(asked: Asked, num_drafted: int) -> Tensor:  # [gamma + 1]
    """Return c_0 .. c_gamma."""
    drafted = asked.token_ids[:num_drafted]
    ratios = asked.p[:num_drafted].gather(1, drafted) / asked.q[:num_drafted].gather(1, drafted)
    clipped = [asked.p.new_ones(())]
    for ratio in ratios.flatten().unbind():
        clipped.append((clipped[-1] * ratio).clamp(max=1))
    return torch.stack(clipped)


def _holds(c: list[float], s: list[float], i: int, num_asked: int) -> float:
    """Return the probability that the test of x_1 .. x_i holds."""
    if i >= num_asked:  # nothing was drawn after it
        return c[i]
    total = s[i] + 1 - c[i]
    return s[i] / total if total > 0 else 1.0
