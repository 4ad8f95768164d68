"""How a prefix LM reads samples: once for each of their answers, all before it being the prompt."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class SampleReading(NamedTuple):
    """One of the ways in which a batch of B samples of T tokens is read."""

    num_prompt: Tensor  # [B] int64: tokens of the prompts, at least one
    own: Tensor  # [B, T] bool: the tokens of the answer behind it, and since the answer before


def readings(counted: Tensor) -> Iterator[SampleReading]:  # of [B, T] bool
    """Yield as many as the sample with most answers has; of each token of a sample one has it.

    An answer is a run of counted tokens. Where the first token counts there is no prompt, and that
    token stands for one: it sees itself, as in a causal model.
    """
    nothing = torch.zeros_like(counted[:, :1])
    begins = counted & ~torch.cat([nothing, counted[:, :-1]], dim=1)
    ends = counted & ~torch.cat([counted[:, 1:], nothing], dim=1)
    most = begins.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]: answers
    left = ends.flip(1).cumsum(dim=1).flip(1)  # [B, T]: answers that end here or later
    owner = torch.minimum(most - left, most - 1)
    order = begins.cumsum(dim=1) - 1  # of an answer's tokens, from 0
    for number in range(int(most.max())):
        last = (most - 1).clamp(max=number)  # a sample with fewer is read as for its last
        start = (begins & (order == last)).int().argmax(dim=1)
        yield SampleReading(start.clamp(min=1), owner == number)
