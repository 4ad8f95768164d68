"""The loss of a language model along samples: every next token, or those behind prompts."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from specdec.lm import mask
from specdec.training.data.readings import readings

LEFT_OUT = -100  # a target that `cross_entropy` leaves out


def next_token_loss(
    module: nn.Module,
    token_ids: Tensor,
    counted: Tensor,
    sight: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Sum the cross-entropy of the tokens that count, in nats: ids and counted [B, T] -> scalar.

    `sight` is what each token sees, as the model takes it; None: what stands left of it.
    """
    logits = module(input_ids=token_ids, use_cache=False, **(sight or {})).logits[:, :-1]
    targets = token_ids[:, 1:].masked_fill(~counted[:, 1:], LEFT_OUT)
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=LEFT_OUT, reduction="sum"
    )


def prefix_lm_loss(module: nn.Module, token_ids: Tensor, counted: Tensor) -> Tensor:
    """Sum it where all before the tokens that count is a prompt, which sees itself both ways.

    Each answer of a sample is read behind a prompt of its own; see `readings`.
    """
    total = torch.zeros((), device=token_ids.device)
    dtype = next(module.parameters()).dtype
    for num_prompt, own in readings(counted):
        sight = mask.sight_of(num_prompt, token_ids.shape[1], dtype)
        total = total + next_token_loss(module, token_ids, counted & own, sight)
    return total
