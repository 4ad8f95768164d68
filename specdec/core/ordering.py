"""Sorted rows and ranks of tokens, whatever the device."""

import numpy as np
import torch
from torch import Tensor

BEHIND_ALL = 1 << 30  # the rank of a token that is not there: more than any vocabulary


# On the CPU by numpy, whose sort has no branches to mispredict, as torch's has.
def ascending(values: Tensor) -> Tensor:  # [..., V]
    """Return the values of each row, smallest first; no gradient."""
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.as_tensor(np.sort(values.detach().numpy(), axis=-1))
    return values.sort(dim=-1).values


def ascending_order(values: Tensor, stable: bool = False) -> Tensor:  # [..., V] -> [..., V] int64
    """Return where the values of each row stand, smallest first; `stable`: of equal ones, too."""
    if values.device.type == "cpu":
        kind = "stable" if stable else None
        return torch.as_tensor(np.argsort(values.detach().numpy(), axis=-1, kind=kind))
    return values.argsort(dim=-1, stable=stable)


def ranks_of(logits: Tensor, token_ids: Tensor) -> Tensor:  # [n, V], [n] -> [n]
    """Count the tokens before each one's: those of larger logits and, of equal, smaller ids.

    `topk`, which chooses the candidates, breaks ties as it likes. What is not a number comes first,
    as it does there; a token beyond the V logits is behind all.
    """
    vocab_size = logits.shape[-1]
    known = token_ids.clamp(max=vocab_size - 1)[:, None]
    own = logits.gather(-1, known)
    tied = (logits == own) & (torch.arange(vocab_size, device=logits.device) < known)
    ranks = (~(logits <= own) | tied).sum(dim=-1)
    return ranks.where(token_ids < vocab_size, BEHIND_ALL)


def likeliest(logits: Tensor, num: int) -> Tensor:  # [n, V] -> [n, num]
    """Return the tokens of the first ranks, in the order of `ranks_of`."""
    top = logits.topk(min(num, logits.shape[1]), dim=1).indices.sort(dim=1).values
    order = logits.gather(1, top).argsort(dim=1, descending=True, stable=True)
    return top.gather(1, order)
