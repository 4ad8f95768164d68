"""The ranks that the tokens of a text had for the proposer that would have drafted them.

At position t of a text the root of a tree is token t + 1, and column i of a row is the rank (from
0) of token t + 2 + i in the proposer's distribution after the true tokens before it. There is a row
for each position whose D tokens all are there and count.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.core.ordering import ranks_of
from specdec.core.unlike_vocabularies import fitted, known
from specdec.heads.base import DraftHeads
from specdec.heads.forcing import HeadTargets, forced_states
from specdec.lm.hf import HFCausalLM
from specdec.training.chunked import LOGITS_AT_ONCE
from specdec.training.data.last_hidden import hidden_along, last_hidden
from specdec.training.data.samples import Samples
from specdec.training.objective import Batch

# Ranks along a batch: [S, D], of S positions.
Ranker = Callable[[Batch], Tensor]


@torch.inference_mode()
def head_ranks(
    heads: DraftHeads, verifier: HFCausalLM, depth: int, batch: Batch
) -> Tensor:  # [S, D]
    """Rank the tokens for the first `depth` heads, which read the true tokens, if any."""
    batch = batch.to(verifier.device)
    targets = HeadTargets.of(batch.token_ids, batch.counted, depth).with_all(depth)
    hidden = hidden_along(verifier, batch, heads.reads).to(next(heads.parameters()).dtype)
    states = forced_states(heads, verifier, hidden, batch.token_ids, targets)
    columns = [
        _in_pieces(
            (states[head], targets.following_ids[:, head]),
            targets.following_ids[:, head + 1],
            lambda state, before, head=head: fitted(
                heads.logits(head, state, before, verifier.unembed), verifier.vocab_size
            ),
            heads.vocab_size,
        )
        for head in range(depth)
    ]
    return torch.stack(columns, dim=1)


@torch.inference_mode()
def draft_ranks(model: HFCausalLM, vocab_size: int, depth: int, batch: Batch) -> Tensor:  # [S, D]
    """Rank the tokens for a draft model, as far as the verifier's `vocab_size` goes."""
    model.require_states("draft.path")
    batch = batch.to(model.device)
    targets = HeadTargets.of(batch.token_ids, batch.counted, depth).with_all(depth)
    read = replace(batch, token_ids=known(batch.token_ids, model.vocab_size))
    hidden = last_hidden(model, read).flatten(0, 1)
    # Neighbours look at the same tokens: each one's rank is computed once, after the token before.
    ahead = targets.positions[:, None] + torch.arange(1, depth + 1, device=model.device)
    before, place = ahead.unique(return_inverse=True)
    ranks = _in_pieces(
        (hidden[before],),
        batch.token_ids.flatten()[before + 1],
        lambda state: model.unembed(state)[:, :vocab_size],
        model.vocab_size,
    )
    return ranks[place]


def _in_pieces(
    read: Sequence[Tensor], token_ids: Tensor, project: Callable[..., Tensor], vocab_size: int
) -> Tensor:  # each [n, ...], [n] -> [n]
    """Project what is read to logits and rank tokens among them, a bounded number at a time."""
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    pieces = zip(*(each.split(size) for each in (*read, token_ids)), strict=True)
    return torch.cat([ranks_of(project(*some).float(), ids) for *some, ids in pieces])


def ranks_along(
    samples: Samples, ranker: Ranker, num_samples: int, batch: int, max_rank: int
) -> Iterator[Tensor]:
    """Yield the ranks [S, D] int32 along the first samples, `batch` of them at a time.

    What lies above `max_rank` is given as `max_rank + 1`.
    """
    for first in range(0, num_samples, batch):
        taken = samples.take(first, min(batch, num_samples - first))
        yield ranker(taken).clamp(max=max_rank + 1).int().cpu()
