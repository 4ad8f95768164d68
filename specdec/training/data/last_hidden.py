"""The states that a model's vocabulary head reads, along whole texts."""

from dataclasses import replace

import torch
from torch import Tensor

from specdec.lm.hf import HFCausalLM
from specdec.training.objective import Batch


def is_frozen(lm: HFCausalLM) -> bool:
    """Whether a model will say the same at the next evaluation."""
    return not any(weight.requires_grad for weight in lm.model.parameters())


@torch.no_grad()
def with_hidden(lm: HFCausalLM, batch: Batch) -> Batch:
    """Let a model read samples one after the other; its states wait on the CPU, in its own type."""
    read = [last_hidden(lm, row.token_ids.to(lm.model.device)).cpu() for row in batch.rows()]
    return replace(batch, hidden=torch.cat(read))


def last_hidden(lm: HFCausalLM, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H]
    """Run a model below its vocabulary head, in its own type, as decoding does.

    Padding stands behind, where none look.
    """
    with torch.autocast(token_ids.device.type, enabled=False):
        return lm.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
