"""A model's hidden states along whole texts: those that its vocabulary head reads, and others."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specdec.core.protocols import SourceReader
from specdec.core.values import FINAL, Layer
from specdec.lm import mask
from specdec.lm.hf import HFCausalLM
from specdec.lm.listening import heard
from specdec.training.data.readings import readings
from specdec.training.data.source_split import decoder_states
from specdec.training.objective import Batch


def is_frozen(lm: HFCausalLM) -> bool:
    """Whether a model will say the same at the next evaluation."""
    return not any(weight.requires_grad for weight in lm.model.parameters())


@torch.no_grad()
def with_hidden(lm: HFCausalLM, batch: Batch, layers: Sequence[Layer] = (FINAL,)) -> Batch:
    """Let a model read samples one after the other; its states wait on the CPU, in its own type."""
    read = [hidden_along(lm, row.to(lm.model.device), layers).cpu() for row in batch.rows()]
    return replace(batch, hidden=torch.cat(read))


def last_hidden(lm: HFCausalLM, batch: Batch) -> Tensor:  # [B, T, H]
    """Run a model below its vocabulary head; see `hidden_along`."""
    return hidden_along(lm, batch, (FINAL,))


def hidden_along(
    lm: HFCausalLM, batch: Batch, layers: Sequence[Layer]
) -> Tensor:  # [B, T, H of each layer]
    """Run a model below its vocabulary head, in its own type, as decoding does.

    The states of several layers stand side by side. Padding stands behind, where none look. A
    prefix LM reads each answer behind a prompt of its own, as `readings` says; beside an encoder a
    sample is a source and one text, see `SourceSplit`, of which the last states are read alone.
    """
    token_ids = batch.token_ids
    with torch.autocast(token_ids.device.type, enabled=False):
        if isinstance(lm, SourceReader):
            assert list(layers) == [FINAL]
            return decoder_states(lm, batch)
        if lm.prompt_mask is None:
            return _states(lm, token_ids, layers)
        found: Tensor | None = None
        for num_prompt, own in readings(batch.counted):
            sight = mask.sight_of(num_prompt, token_ids.shape[1], lm.model.dtype)
            states = _states(lm, token_ids, layers, **sight)
            before = states.new_zeros(states.shape) if found is None else found
            found = torch.where(own[..., None], states, before)
        assert found is not None
        return found


def _states(
    lm: HFCausalLM, token_ids: Tensor, layers: Sequence[Layer], **sight: Any
) -> Tensor:  # [B, T] -> [B, T, H of each layer]
    with heard(lm.model, layers) as states:
        lm.model.base_model(input_ids=token_ids, use_cache=False, **sight)
    return torch.cat([states[layer] for layer in layers], dim=-1)
