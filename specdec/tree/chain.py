"""One candidate after another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.errors import require_int
from specdec.core.randomness import RandomStream
from specdec.core.sampling import draw
from specdec.core.values import Draw


class Chain:
    """A chain of gamma draft tokens, each drawn from q (Leviathan et al. 2023, section 2.1)."""

    draw = Draw.IID

    def __init__(self, gamma: int):
        require_int("tree.gamma", gamma, 1)
        self.max_depth = gamma

    def expand(self, draft_probs: Tensor, streams: Sequence[RandomStream]) -> Tensor:
        """Draw one child for the one node of each request: [B, 1, V] -> [B, 1, 1]."""
        uniforms = torch.tensor(
            [[[stream.uniform()]] for stream in streams],
            dtype=torch.float64,
            device=draft_probs.device,
        )
        return draw(draft_probs, uniforms)
