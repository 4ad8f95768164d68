"""Speculative sampling by rejection, candidate by candidate."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm
from specdec.core.shown import Shown, rows_of
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.odds import Odds, decide, ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.rejection_form import FORMS
from specdec.verification.walk import follow


class Rejection(Batched):
    """Accept x ~ q with probability min(1, p(x)/q(x)), else go on with p := norm((p - q)+).

    Along a chain that is speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al.
    2023, algorithm 2). In a tree the siblings are asked in drawing order, each against what the
    ones before it have left of p: with i.i.d. draws as in SpecInfer (Miao et al. 2024), without
    replacement as in Sequoia (Chen et al. 2024), where q loses each drawn token. For point masses
    it is the same as drawing y ~ p and going on to the child y if there is one, without any q.
    """

    lossless_for = frozenset(
        {
            *(Draw.DETERMINISTIC, Draw.SINGLE, Draw.IID, Draw.PATHS),
            *(Draw.WITHOUT_REPLACEMENT, Draw.FILTERED),
        }
    )
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset({Draw.DETERMINISTIC})

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        if shown.draw is Draw.DETERMINISTIC:
            return follow(shown)
        nodes = CandidateNodes.of(shown)
        return decide(shown, nodes, recursive_rejection(nodes, shown.draw))

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        return FORMS.get(draw)


def recursive_rejection(nodes: CandidateNodes, draw: Draw, lenience: float = 1.0) -> Odds:
    """Ask the candidates of all nodes at once: first all first ones, then all second ones, ...

    `lenience` is what q is multiplied by: with less than 1 the rule is not lossless.
    """
    if nodes.width == 1 and lenience == 1:
        return _along_chain(nodes)
    return _in_turn(nodes, draw, lenience)[0]


def positional_acceptance(nodes: CandidateNodes, draw: Draw) -> Tensor:  # [I, K]
    """Return P(the k-th candidate is the accepted one), averaged over what that candidate is.

    Given those drawn before it, where the draw is without replacement; else over them, too.
    """
    return torch.stack(_in_turn(nodes, draw, lenience=1.0)[1], dim=1)


def _in_turn(nodes: CandidateNodes, draw: Draw, lenience: float) -> tuple[Odds, list[Tensor]]:
    """Return the odds, and for each candidate P(it is the accepted one), its own draw averaged out.

    Those [I] add up to `Odds.some` on average; the sum would vary more than it does.
    """
    rest = nodes.p
    accepts = [nodes.p.new_zeros(len(nodes.numbers), 0)]
    refused = nodes.p.new_ones(len(nodes.numbers))  # P(all candidates so far were refused)
    some = torch.zeros_like(refused)
    gains: list[Tensor] = []
    for number in range(nodes.width):
        token_ids, drawn = nodes.token_ids[:, number : number + 1], nodes.drawn(number)
        q = lenience * probs_of_draw(nodes, draw, number)
        accept = ratio(rest.gather(1, token_ids), q.gather(1, token_ids))
        left = residual(rest, q, nodes.p)
        # Averaged over this candidate's draw: with replacement the rest is the same whatever was
        # drawn before.
        averaged = lost = gain = refused * rest.minimum(q).sum(dim=-1) / lenience
        if draw is Draw.WITHOUT_REPLACEMENT:
            # Without replacement the later draws depend on it, so that only the last one's can be.
            lost, more = refused * accept.squeeze(1), nodes.drawn(number + 1)
            gain = lost if more is None else lost.where(more.squeeze(1), gain)
        if drawn is not None:
            left = left.where(drawn, rest)
            there = drawn.squeeze(1)
            averaged, gain = averaged.where(there, 0.0), gain.where(there, 0.0)
            lost = lost.where(there, 0.0)
        some, refused, rest = some + gain, refused - lost, left
        accepts.append(accept)
        gains.append(averaged)
    odds = Odds(overlaps(nodes), torch.cat(accepts, dim=1), some, partial(rows_of, rest))
    return odds, gains


def _along_chain(nodes: CandidateNodes) -> Odds:
    """Return the same for one candidate at each node, with fewer and smaller tensors."""
    p, q, overlap = nodes.p, nodes.q, overlaps(nodes)
    accept = ratio(p.gather(1, nodes.token_ids), q.gather(1, nodes.token_ids))

    def rest(places: Sequence[int]) -> Tensor:
        p_there, q_there = rows_of(p, places), rows_of(q, places)
        return residual(p_there, q_there, p_there)

    return Odds(overlap, accept, overlap, rest)


def probs_of_draw(nodes: CandidateNodes, draw: Draw, number: int) -> Tensor:  # [I, V]
    """Return what the `number`-th candidate of each node was drawn from, from 0."""
    if draw is Draw.WITHOUT_REPLACEMENT and number > 0:
        left = nodes.q.scatter(1, nodes.token_ids[:, :number], 0.0)
        return left / left.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(left.dtype).tiny)
    return nodes.q
