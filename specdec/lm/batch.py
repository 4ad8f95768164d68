"""Token batches for models: rows of unlike lengths, and trees of unlike shapes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.tree import CandidateTree
from specdec.lm import mask


def pad(
    rows: Sequence[Sequence[int]], device: torch.device, least: int = 0
) -> Tensor:  # [B, M] int64
    """Stack rows of unlike lengths, zeros at the end, at `least` so wide."""
    longest = max(least, *map(len, rows))
    return on_device([[*row, *[0] * (longest - len(row))] for row in rows], device)


class TreeBatch(NamedTuple):
    """The arguments of `CausalLM.forward` that make it look at one tree per row."""

    token_ids: Tensor  # [B, M]
    positions: Tensor | None  # [B, M]
    attend: Tensor | None  # [B, M, L]

    @classmethod
    def of(
        cls, trees: Sequence[CandidateTree], starts: Sequence[int], device: torch.device
    ) -> "TreeBatch":
        """Put each tree behind the `starts[b]` cached cells of its row.

        Chains need neither mask nor positions: they are ordinary text, padded at the end.
        """
        token_ids = pad([tree.token_ids for tree in trees], device)
        if all(tree.is_chain for tree in trees):
            return cls(token_ids, None, None)
        positions = pad(
            [
                [start + depth for depth in tree.depths]
                for start, tree in zip(starts, trees, strict=True)
            ],
            device,
        )
        attend = mask.trees(starts, [tree.ancestors() for tree in trees], device)
        return cls(token_ids, positions, attend)
