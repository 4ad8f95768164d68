"""One candidate after another."""

from specdec.core.errors import require_int
from specdec.core.values import Draw
from specdec.tree.sampled import SampledTree


class Chain(SampledTree):
    """A chain of gamma draft tokens, each drawn from q (Leviathan et al. 2023, section 2.1).

    With `min_confidence` drafting ends early, before a token that the draft is not sure enough of
    is drawn: where its likeliest candidate is less likely than that.
    """

    def __init__(self, gamma: int, min_confidence: float = 0.0):
        require_int("gamma", gamma, 1)
        super().__init__(
            [(0,) * depth for depth in range(1, gamma + 1)], Draw.SINGLE, min_confidence
        )
