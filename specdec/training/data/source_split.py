"""Where the sources in samples end: an encoder reads those, and its decoder what stands behind."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.lm.hf import HFCausalLM
from specdec.training.objective import Batch


@dataclass(frozen=True)
class SourceSplit:
    """A source, the token that the decoder begins with, and a text that counts, B times."""

    num_source: Tensor  # [B] int64: tokens of the sources
    width: int  # tokens of the longest text, its first one included

    @classmethod
    def of(cls, counted: Tensor) -> "SourceSplit":  # [B, T] bool
        """Split samples of one answer each; padding stands behind."""
        num_source = counted.int().argmax(dim=1) - 1
        num_read = 1 + counted.sum(dim=1)
        assert bool((num_source > 0).all()), "a source, and a text behind it"
        within = torch.arange(counted.shape[1], device=counted.device) < num_source[:, None] + 1
        ends = (num_source + num_read)[:, None]
        one = torch.arange(counted.shape[1], device=counted.device) < ends
        assert torch.equal(counted, one & ~within), "one answer in a sample"
        return cls(num_source, int(num_read.max()))

    def behind(self, values: Tensor) -> Tensor:  # [B, T, ...] -> [B, width, ...]
        """Take what stands behind the sources; zeros where there is no more."""
        places = self.num_source[:, None] + torch.arange(self.width, device=values.device)
        return _taken(values, places)

    def placed(self, found: Tensor, length: int) -> Tensor:  # [B, width, ...] -> [B, length, ...]
        """Put what `behind` took where it was; zeros on the sources."""
        places = torch.arange(length, device=found.device) - self.num_source[:, None]
        return _taken(found, places)


def _taken(values: Tensor, places: Tensor) -> Tensor:  # [B, T, ...], [B, W] -> [B, W, ...]
    """Take places of rows; zeros where a row has none."""
    last = values.shape[1] - 1
    rows = torch.arange(len(values), device=values.device)[:, None]
    found = values[rows, places.clamp(0, last)]
    there = (places >= 0) & (places <= last)
    return found * there.view(*there.shape, *[1] * (found.ndim - 2)).to(found.dtype)


def decoder_states(lm: HFCausalLM, batch: Batch) -> Tensor:  # [B, T, H]
    """Run encoder and decoder; a source's tokens have no states, but zeros."""
    token_ids, split = batch.token_ids, SourceSplit.of(batch.counted)
    longest = int(split.num_source.max())
    seen = torch.arange(longest, device=token_ids.device) < split.num_source[:, None]
    model: Any = lm.model
    mask = {"attention_mask": seen.long()}
    encoded = model.get_encoder()(input_ids=token_ids[:, :longest], **mask).last_hidden_state
    said = model.get_decoder()(
        input_ids=split.behind(token_ids),
        encoder_hidden_states=encoded,
        encoder_attention_mask=seen.long(),
        use_cache=False,
    )
    return split.placed(said.last_hidden_state, token_ids.shape[1])
