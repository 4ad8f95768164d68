"""How likely a text is to have come through each child of a node: closed forms, rule by rule.

Let a node have K children drawn from q, and let x be the token that the text has there. A lossless
rule emits x with probability p(x), and accepts the k-th child, x being what it bears, with some
probability m_k(x). Given the text, that child was accepted with probability m_k(x) / p(x), its
share; the shares add up to at most 1, and what they lack is the probability that x was drawn after
all children were refused. Which other tokens the children bore is averaged out.

Every function takes p and q [n, V] (float32 or float64) at n nodes, the text's token x [n] after
each, and K, and returns the shares [n, K].
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from specdec.core.sampling import draw
from specdec.verification.kseq import smallest_rho
from specdec.verification.odds import ratio, residual

Shares = Callable[[Tensor, Tensor, Tensor, int], Tensor]
NUM_SEQUENCES = 8  # of refused candidates that are drawn where no closed form is known


def at(rows: Tensor, token_ids: Tensor) -> Tensor:  # [n, V], [n] -> [n]
    """Return one entry of each row."""
    return rows.gather(1, token_ids[:, None]).squeeze(1)


def single(p_x: Tensor, q_x: Tensor) -> Tensor:  # [n], [n] -> [n]
    """Return the share of a single draw under rejection: min(1, q/p) (Leviathan et al. 2023)."""
    return ratio(q_x, p_x)


def passes(p: Tensor, q: Tensor, token_ids: Tensor) -> Tensor:  # [n, V], [n, V], [n] -> [n]
    """Return P(a drawn token was submitted | the text has x there), under rejection.

    q is what a filter lets pass, not renormalised. The text's token was the submitted one, or is
    from the residual, which is drawn from if a token was refused or was withheld.
    """
    excess = (q - p).clamp(min=0).double().sum(dim=1)  # P(submitted and refused)
    missing = (p - q).clamp(min=0).double()
    refused = (excess / missing.sum(dim=1).clamp(min=torch.finfo(p.dtype).tiny)).clamp(max=1)
    own, accepted = at(p, token_ids).double(), at(p.minimum(q), token_ids).double()
    return ratio(accepted + at(missing, token_ids) * refused, own)


def passes_block(p: Tensor, q: Tensor, clipped: Tensor) -> Tensor:  # [n, V] twice, [n] -> [n]
    """Return P(a drawn token was submitted | it was not accepted, the one above was), for blocks.

    q is as above, `clipped` what `Block` calls c after the tokens above. Of the tests at and behind
    a drawn y at least one holds with probability min(1, c p(y)/q(y)), whatever is drawn behind it.
    """
    excess = (q - clipped[:, None] * p).clamp(min=0).double().sum(dim=1)
    withheld = (1 - q.double().sum(dim=1)).clamp(min=0)
    return ratio(excess, excess + withheld)


def rejection_iid(p: Tensor, q: Tensor, token_ids: Tensor, num: int) -> Tensor:
    """Recursive rejection of i.i.d. draws (Miao et al. 2024): what is left of p knows no tokens."""
    own, live = at(p, token_ids), p.new_ones(len(p))
    found: list[Tensor] = []
    for covered in covered_by_rejection(p, q, num):
        found.append(ratio(live * at(covered, token_ids), own))
        live = live * (1 - covered.sum(dim=1)).clamp(min=0)
    return torch.stack(found, dim=1)


def covered_by_rejection(p: Tensor, q: Tensor, num: int) -> Iterator[Tensor]:  # of [n, V]
    """Yield P(the draw is this token, and accepted | it is asked about), draw by draw."""
    rest = p
    for number in range(num):
        if number:
            rest = residual(rest, q, p)
        yield rest.minimum(q)


def rejection_without_replacement(
    p: Tensor, q: Tensor, token_ids: Tensor, num: int, generator: torch.Generator | None = None
) -> Tensor:
    """Recursive rejection of draws without replacement (Chen et al. 2024, Sequoia).

    Exact for two children: the second one's law depends on the first one's token t, which is
    refused with (q - p)+, and all t are summed over. For more, sequences of refused tokens are
    drawn, each refused by then with certainty, and their weights averaged: unbiased, also where
    shares of several nodes are multiplied, since each node has sequences of its own.
    """
    own = at(p, token_ids)
    columns = [ratio(at(p.minimum(q), token_ids), own)]
    rest = residual(p, q, p)
    if num > 1:
        refused = (q - p).clamp(min=0)  # [n, V]: P(t was drawn first, and refused)
        at_x = at(q, token_ids)[:, None] / beside_each(q)
        second = (refused * at_x.minimum(at(rest, token_ids)[:, None])).sum(dim=1)
        columns.append(ratio(second, own))
    if num > 2:
        drawn = [
            _after_refusals(p, q, rest, token_ids, num, generator) for _ in range(NUM_SEQUENCES)
        ]
        mean = torch.stack(drawn).mean(dim=0)  # [n, K - 2]
        columns += list((mean / own.clamp(min=torch.finfo(p.dtype).tiny)[:, None]).unbind(1))
    return torch.stack(columns, dim=1)


def beside_each(q: Tensor) -> Tensor:  # [n, V] -> [n, V]
    """Return what q gives to all tokens but each one.

    Not 1 - q: where the draft is nearly sure of a token, float32 has nothing left of that.
    """
    likeliest = q.argmax(dim=1, keepdim=True)
    beside = q.scatter(1, likeliest, 0.0).sum(dim=1, keepdim=True)
    others = beside + q.gather(1, likeliest) - q
    return others.scatter(1, likeliest, beside).clamp(min=torch.finfo(q.dtype).tiny)


def _after_refusals(
    p: Tensor,
    q: Tensor,
    rest: Tensor,
    token_ids: Tensor,
    num: int,
    generator: torch.Generator | None,
) -> Tensor:  # [n, K - 2]
    """Draw refused tokens one after another; return m_3 ... m_K given these."""
    found: list[Tensor] = []
    target, law, weight = p, q, p.new_ones(len(p))
    for number in range(num - 1):
        refused = (law - target).clamp(min=0)
        weight = weight * refused.sum(dim=1)
        gone = _any_of(refused, generator)
        target = rest if number == 0 else residual(target, law, target)
        law = law.scatter(1, gone, 0.0)
        law = law / law.sum(dim=1, keepdim=True).clamp(min=torch.finfo(law.dtype).tiny)
        if number > 0:
            found.append(weight * at(target.minimum(law), token_ids))
    return torch.stack(found, dim=1)


def _any_of(weights: Tensor, generator: torch.Generator | None) -> Tensor:  # [n, V] -> [n, 1]
    """Draw a token from each row; any will do where there is no weight."""
    uniforms = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64)
    return draw(weights, uniforms.to(weights.device)).clamp_(max=weights.shape[1] - 1)


def kseq(p: Tensor, q: Tensor, token_ids: Tensor, num: int) -> Tensor:
    """K-SEQ (Sun et al. 2023, SpecTr): each of the K draws is asked against the same p / rho."""
    (once, *_) = covered_by_kseq(p, q, num)
    refused = 1 - once.sum(dim=1)
    first = ratio(at(once, token_ids), at(p, token_ids))
    return torch.stack([first * refused**number for number in range(num)], dim=1)


def covered_by_kseq(p: Tensor, q: Tensor, num: int) -> list[Tensor]:  # of [n, V]
    """Return what `covered_by_rejection` yields: the same for each draw."""
    k = p.new_full((len(p), 1), float(num))
    rho = smallest_rho(p, q, k) if num > 1 else k
    return [(p / rho).minimum(q)] * num


def top_plus_one(p: Tensor, q: Tensor, token_ids: Tensor, num: int) -> Tensor:
    """All but the last child are the likeliest tokens, and never refused (Hu et al. 2025)."""
    is_top, others = top_and_others(q, token_ids, num)
    last = ratio(at(others, token_ids), at(p, token_ids)) * ~is_top.any(dim=1)
    return torch.cat([is_top.to(p.dtype), last[:, None]], dim=1)


def match_iid(p: Tensor, q: Tensor, token_ids: Tensor, num: int) -> Tensor:
    """The verifier's own draw is looked for among i.i.d. draws; the first that bears it counts."""
    drawn = at(q, token_ids)
    return torch.stack([drawn * (1 - drawn) ** number for number in range(num)], dim=1)


def match_top_plus_one(p: Tensor, q: Tensor, token_ids: Tensor, num: int) -> Tensor:
    """The same among the likeliest tokens and one draw from the others."""
    is_top, others = top_and_others(q, token_ids, num)
    return torch.cat([is_top.to(p.dtype), at(others, token_ids)[:, None]], dim=1)


def match_without_replacement(
    p: Tensor, q: Tensor, token_ids: Tensor, num: int, generator: torch.Generator | None = None
) -> Tensor:
    """The same among draws without replacement; beyond two over drawn sequences of others."""
    at_x = at(q, token_ids)
    columns = [at_x]
    others = q.scatter(1, token_ids[:, None], 0.0)
    if num > 1:
        columns.append(at_x * (others / beside_each(q)).sum(dim=1))
    if num > 2:
        drawn = [_drawn_late(at_x, others, num, generator) for _ in range(NUM_SEQUENCES)]
        columns += list(torch.stack(drawn).mean(dim=0).unbind(1))
    return torch.stack(columns, dim=1)


def _drawn_late(
    at_x: Tensor, others: Tensor, num: int, generator: torch.Generator | None
) -> Tensor:  # [n, K - 2]
    """Draw others than x first; return P(x is drawn third), ... given these."""
    found: list[Tensor] = []
    live, tiny = torch.ones_like(at_x), torch.finfo(at_x.dtype).tiny
    for number in range(num):
        # Added up anew: what a nearly sure draft leaves is lost when its token is subtracted.
        share = at_x / (at_x + others.sum(dim=1)).clamp(min=tiny)
        if number > 1:
            found.append(live * share)
        live = live * (1 - share)
        others = others.scatter(1, _any_of(others, generator), 0.0)
    return torch.stack(found, dim=1)


def top_and_others(q: Tensor, token_ids: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return where x is among the K - 1 likeliest [n, K - 1], and q without these, renormalised."""
    mass, top = q.topk(min(num - 1, q.shape[1]), dim=1)
    others = q.scatter(1, top, 0.0)
    others = others / others.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    is_top = (top == token_ids[:, None]) & (mass > 0)
    beyond = num - 1 - top.shape[1]
    return torch.nn.functional.pad(is_top, (0, beyond)), others
