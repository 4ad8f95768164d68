"""The loss of an early exit along a text, in one module, as wrappers for several processes want."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_split import LayerSplit
from specdec.proposer.early_exit import EarlyExitHead, split_at
from specdec.training.objective import Loss
from specdec.training.token_losses import TokenLosses


class ExitLosses(TokenLosses):
    """An exit and its loss against the verifier's distribution after the same tokens.

    The exit alone is a part of the module: the verifier's layers are frozen, and nobody's to save.
    """

    split: LayerSplit

    def __init__(self, head: EarlyExitHead, verifier: HFCausalLM, loss: Loss, share: float = 1.0):
        super().__init__(verifier, loss, verifier.vocab_size, share)
        self.head = head
        self.split = split_at(verifier, head.exit_layer, head)
        self._dtype = verifier.model.dtype

    @torch.no_grad()
    def states(self, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H] float32
        """Run the first layers of the verifier, in its own type, as decoding does."""
        with torch.autocast(token_ids.device.type, enabled=False):
            self.split.shared(input_ids=token_ids, use_cache=False)
        return self.split.take().float()

    def logits(self, states: Tensor) -> Tensor:
        """Exit from there."""
        return self.split.logits_of(states.to(self._dtype))

    def trained_above(self) -> Sequence[Tensor]:
        """All weights of the exit."""
        return list(self.head.parameters())
