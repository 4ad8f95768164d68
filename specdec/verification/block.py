"""Block verification: the longest part of a chain that is as likely as p says, taken jointly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, Passes, TextNodes
from specdec.core.on_host import rows
from specdec.core.randomness import Stream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification import single_draw
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.odds import ratio, residual
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
    decided_by_text = frozenset[Draw]()

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one chain. Row i of `verifier_probs` [N+1, V] is p after node i."""
        num_drafted = proposal.tree.num_draft_tokens
        nodes = CandidateNodes.of(proposal, verifier_probs)
        clipped = _clipped_ratios(nodes, num_drafted)
        # Nodes with a candidate, shown or withheld: all but, mostly, the last.
        ahead = clipped[: len(nodes.numbers), None] * nodes.p  # c_i p after x_1 .. x_i
        excess = (ahead - nodes.q).clamp_(min=0).sum(dim=-1)  # S_i
        zeros = torch.zeros(num_drafted + 1 - len(nodes.numbers), device=clipped.device)
        table = torch.stack(
            [clipped, torch.cat([excess, zeros]), torch.cat([overlaps(nodes), zeros])]
        )
        c, s, overlap = rows(table)
        accepted = num_drafted
        while accepted > 0 and not stream.accept(_holds(c, s, accepted, len(nodes.numbers))):
            accepted -= 1
        if accepted < len(nodes.numbers):
            ours, theirs = ahead[accepted], nodes.q[accepted]
            weights = residual(ours, theirs, nodes.p[accepted])
        else:
            weights = verifier_probs[accepted]
        # E[sum_k c_k], with the draw of the k-th token averaged out: sum_v min(c_{k-1} p, q).
        expected = sum(c[node] - s[node] for node in nodes.numbers)
        path = range(1, accepted + 1)
        seen = dict(zip(nodes.numbers, overlap, strict=False))
        return verdict_on(proposal, nodes, path, stream.choose(weights), expected, seen)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        return CHAIN_FORM if draw in self.defined_for else None


def _clipped_ratios(nodes: CandidateNodes, num_drafted: int) -> Tensor:  # [gamma + 1]
    """Return c_0 .. c_gamma."""
    drafted = nodes.token_ids[:num_drafted]
    ratios = nodes.p[:num_drafted].gather(1, drafted) / nodes.q[:num_drafted].gather(1, drafted)
    clipped = [nodes.p.new_ones(())]
    for of_token in ratios.flatten().unbind():
        clipped.append((clipped[-1] * of_token).clamp(max=1))
    return torch.stack(clipped)


def _holds(c: list[float], s: list[float], i: int, num_nodes: int) -> float:
    """Return the probability that the test of x_1 .. x_i holds."""
    if i >= num_nodes:  # nothing was drawn after it
        return c[i]
    total = s[i] + 1 - c[i]
    return s[i] / total if total > 0 else 1.0


def _shares(nodes: TextNodes) -> Tensor:  # [n, 1]
    """Return P(A >= d | text, A >= d - 1).

    P(A >= k | text) is the least of the products of the first j <= k ratios q/p, and of 1.
    """
    above = torch.zeros_like(nodes.log_p)
    total, least = above, above
    for log_ratio in nodes.log_ratios:
        total = total + log_ratio
        above, least = least, least.minimum(total)
    return (least - above).exp().where(above > -torch.inf, 0.0)[:, None]


def clipped_along(log_ratios: Sequence[Tensor]) -> Tensor:  # of [n] -> [n]
    """Return c after the text's tokens: c_0 = 1, c_k = min(1, c_{k-1} p/q); at least one ratio."""
    clipped = torch.zeros_like(log_ratios[0])
    for log_ratio in log_ratios:
        clipped = (clipped - log_ratio).clamp(max=0)
    return clipped.exp()


def _passes(nodes: TextNodes) -> Tensor:  # [n]
    """Return P(a drawn token was submitted | x, A >= d - 1).

    If it was not accepted, c is as after the tokens above: of the tests at and behind a drawn y at
    least one holds with probability min(1, c p(y)/q(y)), whatever is drawn behind it.
    """
    *above, _ = nodes.log_ratios
    if not above:
        return single_draw.passes(nodes)
    c = clipped_along(above).to(nodes.q.dtype)
    excess = (nodes.q - c[:, None] * nodes.p).clamp(min=0).double().sum(dim=1)
    withheld = (1 - nodes.q.double().sum(dim=1)).clamp(min=0)
    accepted = _shares(nodes)[:, 0]
    return accepted + (1 - accepted) * ratio(excess, excess + withheld)


CHAIN_FORM = ClosedForm(
    _shares, needs_p=False, reads_path=True, passes=Passes(_passes), ends=single_draw.ENDS
)
