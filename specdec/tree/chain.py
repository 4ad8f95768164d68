"""One candidate after another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.errors import require_int
from specdec.core.randomness import RandomStream
from specdec.core.sampling import draw
from specdec.core.values import Draw, Level


class Chain:
    """A chain of gamma draft tokens, each drawn from q (Leviathan et al. 2023, section 2.1)."""

    draw = Draw.IID

    def __init__(self, gamma: int):
        require_int("tree.gamma", gamma, 1)
        self.max_depth = gamma

    def expand(self, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]) -> Level:
        """Draw one child for the one node of each request."""
        uniforms = torch.tensor(
            [[[stream.uniform()]] for stream in streams],
            dtype=torch.float64,
            device=draft_probs.device,
        )
        # Where the draft's numbers are NaN, nothing is below the target; the verifier shall judge.
        drawn = draw(draft_probs, uniforms).clamp_(max=draft_probs.shape[-1] - 1)
        return Level((0,), drawn.flatten(1))
