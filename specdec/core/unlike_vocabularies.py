"""Token ids and logits of models whose vocabularies are padded to unlike sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def readable(token_ids: Sequence[int], vocab_size: int) -> Sequence[int]:
    """Let a model read what another one's padding may have written, as some other token."""
    if all(token < vocab_size for token in token_ids):
        return token_ids
    return [token if token < vocab_size else 0 for token in token_ids]


def known(token_ids: Tensor, vocab_size: int) -> Tensor:  # [...] -> [...]
    """Do as `readable` does, on the device: a model embeds no tokens but its own.

    Candidates of a draft model with fewer tokens than its verifier may be others where they only
    hold a place: left out of the tree, and of no consequence for what is read at their neighbours.
    """
    return token_ids.where(token_ids < vocab_size, 0)


def fitted(logits: Tensor, vocab_size: int) -> Tensor:  # [..., V of one] -> [..., V of the other]
    """Cut logits, or widen them by tokens that are impossible."""
    missing = vocab_size - logits.shape[-1]
    if missing == 0:
        return logits
    return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
