"""The states that a model's vocabulary head reads, along whole texts."""

from dataclasses import replace

import torch
from torch import Tensor

from specdec.core.protocols import SourceReader
from specdec.lm import mask
from specdec.lm.hf import HFCausalLM
from specdec.training.data.readings import readings
from specdec.training.data.source_split import decoder_states
from specdec.training.objective import Batch


def is_frozen(lm: HFCausalLM) -> bool:
    """Whether a model will say the same at the next evaluation."""
    return not any(weight.requires_grad for weight in lm.model.parameters())


@torch.no_grad()
def with_hidden(lm: HFCausalLM, batch: Batch) -> Batch:
    """Let a model read samples one after the other; its states wait on the CPU, in its own type."""
    read = [last_hidden(lm, row.to(lm.model.device)).cpu() for row in batch.rows()]
    return replace(batch, hidden=torch.cat(read))


def last_hidden(lm: HFCausalLM, batch: Batch) -> Tensor:  # [B, T, H]
    """Run a model below its vocabulary head, in its own type, as decoding does.

    Padding stands behind, where none look. A prefix LM reads each answer behind a prompt of its
    own, as `readings` says; beside an encoder a sample is a source and one text, see `SourceSplit`.
    """
    token_ids, base = batch.token_ids, lm.model.base_model
    with torch.autocast(token_ids.device.type, enabled=False):
        if isinstance(lm, SourceReader):
            return decoder_states(lm, batch)
        if lm.prompt_mask is None:
            return base(input_ids=token_ids, use_cache=False).last_hidden_state
        found = lm.embed(token_ids).new_zeros(*token_ids.shape, lm.state_size)
        for num_prompt, own in readings(batch.counted):
            sight = mask.sight_of(num_prompt, token_ids.shape[1], lm.model.dtype)
            states = base(input_ids=token_ids, use_cache=False, **sight)
            found = torch.where(own[..., None], states.last_hidden_state, found)
        return found
