"""Candidates in the order of their joint draft probability: what trees share that follow it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.values import Level


def likeliest(draft_probs: Tensor, width: int) -> tuple[Tensor, Tensor]:  # [B, F, V]
    """Return the probabilities and ids [B, F, K] of each node's `width` likeliest tokens.

    Of equally likely ones those of smaller ids are chosen, and come first. Nodes that share one
    row, as they do below heads that read no tokens, are looked at once.
    """
    num_nodes, vocab_size = draft_probs.shape[1:]
    if draft_probs.stride(1) == 0:
        draft_probs = draft_probs[:, :1]
    values, ids = draft_probs.topk(width)
    # Of tokens as likely as the last one, `topk` may have chosen any.
    least = values[..., -1:]
    every = torch.arange(vocab_size, dtype=torch.int32, device=ids.device)
    tied = torch.where(draft_probs == least, every, vocab_size).topk(width, largest=False)
    num_above = (values > least).sum(dim=-1, keepdim=True)
    place = torch.arange(width, device=ids.device)
    tied_ids = tied.values.long().gather(-1, (place - num_above).clamp(min=0))
    ids = torch.where(place < num_above, ids, tied_ids)
    # Sorted by ids first, then by probabilities, which leaves equal ones in order.
    ids = ids.clamp(max=vocab_size - 1).sort(dim=-1).values  # beyond it where q is no number
    found, order = draft_probs.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    shape = (-1, num_nodes, -1)
    return found.expand(*shape), ids.gather(-1, order).expand(*shape)


def ranked_level(
    above: Level | None,
    probs: Tensor,
    token_ids: Tensor,
    beam: int,
    min_gain: float,
    most: int | None = None,
) -> Level:
    """Hang K children from each node of a frontier; the best `beam` of all of them go on.

    Takes what the draft gives them after their parents, and which they are: [B, F, K] each. A
    child's score is the joint probability of its path; without any, or with less than `min_gain`,
    it is not there. The best `most` become candidates; None: all of them.
    """
    num_rows, num_above, width = probs.shape
    scores = probs
    if above is not None:
        assert above.scores is not None
        scores = scores * above.scores.gather(1, above.frontier)[..., None]
    places = torch.arange(num_above, device=scores.device).repeat_interleave(width)
    parents = places.expand(num_rows, -1)
    scores, token_ids = scores.flatten(1), token_ids.flatten(1)
    if most is not None and most < scores.shape[1]:
        chosen = _best(scores, most)
        parents, scores, token_ids = (x.gather(1, chosen) for x in (parents, scores, token_ids))
    return Level(
        token_ids,
        parents,
        _best(scores, beam),
        (scores > 0) & (scores >= min_gain),
        scores=scores,
    )


def best_of(levels: Sequence[Level], there: Tensor, num_nodes: int) -> Tensor:  # [B, N] bool
    """Choose the candidates of the largest scores, of those that are `there`.

    Of equal scores the upper node stands first and stays first: no child without its parent.
    """
    scores = torch.cat([level.scores for level in levels if level.scores is not None], dim=1)
    chosen = _best(scores.masked_fill(~there, -1.0), num_nodes)
    return there & torch.zeros_like(there).scatter_(1, chosen, True)


def _best(scores: Tensor, number: int) -> Tensor:  # [B, N] -> [B, <= number] places, ascending
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[:, :number].sort(dim=-1).values
