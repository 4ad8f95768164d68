"""The texts that the nodes of growing trees stand behind, for processors that look at them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.processing import processed
from specdec.core.values import Context


class Paths:
    """The committed tokens of B requests, and the path to each of F nodes of their frontier."""

    def __init__(self, contexts: Sequence[Context], device: torch.device):
        self._processors = [context.processors for context in contexts]
        self._needed = any(self._processors)
        texts = [context.token_ids if self._needed else () for context in contexts]
        self._texts = [on_device(list(text), device) for text in texts]  # each [T]
        self._below = torch.zeros(len(contexts), 1, 0, dtype=torch.int64, device=device)

    def processed(self, logits: Tensor) -> Tensor:  # [B, F, V], or [B, 1, V] of all F nodes
        """Process the logits after the nodes of the frontier as the verifier's are.

        Where nothing is to be done they come back as they are, else as [B, F, V].
        """
        if not self._needed:
            return logits
        width = self._below.shape[1]
        logits = logits.expand(-1, width, -1)
        rows = zip(self._processors, self._texts, self._below, logits, strict=True)
        return torch.stack(
            [
                processed(processors, torch.cat([text.expand(width, -1), below], dim=1), each)
                for processors, text, below, each in rows
            ]
        )

    def go_on(self, token_ids: Tensor, parents: Tensor) -> None:
        """Go down to the next frontier: tokens [B, F'], and their parents' places [B, F']."""
        if self._needed:
            places = parents[..., None].expand(-1, -1, self._below.shape[2])
            above = self._below.gather(1, places)
            self._below = torch.cat([above, token_ids[..., None]], dim=2)
