"""Several chains from one root."""

from specdec.core.errors import require_int
from specdec.core.values import Draw
from specdec.tree.sampled import SampledTree


class WholePaths(SampledTree):
    """`num_paths` sampled chains of gamma tokens that know nothing of each other (Sun et al. 2023).

    Where two of them begin with the same tokens, both are submitted. One path is a sampled chain.

    Args:
        num_paths: K.
        gamma: the length of each.
        min_confidence: a chain ends before a token that the draft gives less probability.
    """

    def __init__(self, num_paths: int, gamma: int, min_confidence: float = 0.0):
        require_int("num_paths", num_paths, 1)
        require_int("gamma", gamma, 1)
        nodes = [(path, *(0,) * depth) for depth in range(gamma) for path in range(num_paths)]
        super().__init__(nodes, Draw.PATHS, min_confidence)
