"""The loss of a language model along samples: every next token, or those behind prompts."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from specdec.lm import mask
from specdec.training.balance import Balance
from specdec.training.data.readings import readings
from specdec.training.objective import Batch

LEFT_OUT = -100  # a target that `cross_entropy` leaves out


def text_loss(
    module: nn.Module, batch: Batch, attention: str | None, balance: Balance | None = None
) -> Tensor:
    """Sum the cross-entropy of the tokens that count, in nats, and of experts their balance.

    With an `attention`, prefix_lm, all before the tokens that count is a prompt that sees itself in
    both directions; each answer of a sample is read behind a prompt of its own (`readings`).
    """
    wanted = {} if balance is None else balance.wanted
    total = torch.zeros((), device=batch.token_ids.device)
    for sight, read in _readings(module, batch, attention):
        output = module(input_ids=read.token_ids, use_cache=False, **sight, **wanted)
        total = total + _cross_entropy(output.logits, read)
        if balance is not None:
            total = total + balance.loss(output, read)
    return total


def _readings(
    module: nn.Module, batch: Batch, attention: str | None
) -> Iterator[tuple[Mapping[str, Tensor], Batch]]:
    """Yield what each token sees, as a model takes it, and what counts of that reading."""
    if attention is None:
        yield {}, batch
        return
    dtype = next(module.parameters()).dtype
    for num_prompt, own in readings(batch.counted):
        sight = mask.sight_of(num_prompt, batch.token_ids.shape[1], dtype)
        yield sight, replace(batch, counted=batch.counted & own)


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:  # [B, T, V]
    targets = batch.token_ids[:, 1:].masked_fill(~batch.counted[:, 1:], LEFT_OUT)
    return nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        targets.flatten(),
        ignore_index=LEFT_OUT,
        reduction="sum",
    )
