"""The encoder of a model, and what a draft model with the same one need not compute again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from specdec.lm.batch import pad

Source = tuple[int, ...]
PROBE = (1, 2, 3)  # a source that encoders are compared on


class Encoder:
    """Reads sources; with `is_shared` it remembers those of the last batch that it read."""

    def __init__(self, model: PreTrainedModel):
        self.module: Any = model.get_encoder()
        self.is_shared = False
        self._device: torch.device = model.device
        self._said: dict[Source, Tensor] = {}

    def read(self, sources: Sequence[Sequence[int]], seen: Tensor) -> Tensor:
        """Return the states [B, S, H] of sources; `seen` [B, S] is 1 where they have a token."""
        keys = [tuple(source) for source in sources]
        if all(key in self._said for key in keys):
            return pad_sequence([self._said[key] for key in keys], batch_first=True)
        # Without padding nothing is masked, and it runs where there are shapes alone.
        mask = seen if len(set(map(len, keys))) > 1 else None
        given = {"input_ids": pad(sources, self._device), "attention_mask": mask}
        states: Tensor = self.module(**given).last_hidden_state
        if self.is_shared:
            self._said = {key: states[row, : len(key)].clone() for row, key in enumerate(keys)}
        return states

    @torch.inference_mode()
    def is_like(self, other: "Encoder") -> bool:
        """Whether both have the same weights, and say the same."""
        ours, theirs = self.module.state_dict(), other.module.state_dict()
        if self._device != other._device or ours.keys() != theirs.keys():
            return False
        if not all(_is_same(ours[name], theirs[name]) for name in ours):
            return False
        seen = torch.ones(1, len(PROBE), dtype=torch.int64, device=self._device)
        return _is_same(self.read([PROBE], seen), other.read([PROBE], seen))


def _is_same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)
