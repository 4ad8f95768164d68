"""What chains are drafted behind: text of some rows, and the numbers that tokens are drawn by."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.lm.new_cells import Span


class ChainCells(NamedTuple):
    """Text for each of B rows, M cells wide, and uniforms for the chain behind it."""

    rows: Sequence[int]
    token_ids: Tensor  # [B, M]
    lengths: Sequence[int]  # [B]: without the padding
    uniforms: Tensor  # [B, depth] float64

    @property
    def num_new(self) -> int:
        """M."""
        return self.token_ids.shape[1]

    @property
    def last(self) -> Tensor:  # [B]
        """Where the last token of each row's text is."""
        return on_device([length - 1 for length in self.lengths], self.token_ids.device)

    def filled(self, span: Span) -> "ChainCells":
        """Add idle rows, which read and draw something that nobody looks at."""
        places = span.places
        if places is None:
            return self
        lengths = [1] * len(span.rows)
        for place, length in zip(places, self.lengths, strict=True):
            lengths[place] = length
        where = on_device(places, self.token_ids.device)
        both = [
            each.new_zeros(len(span.rows), each.shape[1]).index_copy(0, where, each)
            for each in (self.token_ids, self.uniforms)
        ]
        return ChainCells(span.rows, both[0], lengths, both[1])

    def written(self, drafted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text with a chain [B, depth] behind it, as if it had been read at once.

        Returns: tokens [B, M + depth - 1], and the places [B, depth] that each was drawn behind.
        """
        depth = drafted.shape[1]
        token_ids = torch.nn.functional.pad(self.token_ids, (0, depth - 1))
        places = self.last[:, None] + torch.arange(depth, device=drafted.device)
        return token_ids.scatter(1, places[:, 1:], drafted[:, :-1]), places
