"""Typical acceptance: what is not too unlikely for so uncertain a verifier. Not lossless."""

from specdec.core.errors import require_number
from specdec.core.shown import Shown
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.longest_path import accept_longest


class Typical(Batched):
    """Accept x if p(x) > min(epsilon, delta exp(-H(p))), the longest path of such tokens.

    Cai et al. 2024 (Medusa, section 2.3.1), with H the entropy in nats. The authors choose delta as
    the square root of epsilon. What follows the path is drawn from p. At temperature 0, where p is
    one token, nothing else is accepted.
    """

    lossless_for = frozenset[Draw]()
    defined_for = frozenset({Draw.DETERMINISTIC, Draw.SINGLE})
    needs_q = False

    def __init__(self, epsilon: float = 0.09, delta: float = 0.3):
        require_number("epsilon", epsilon, 0.0, 1.0)
        require_number("delta", delta, 0.0, 1.0)
        self._epsilon = epsilon
        self._delta = delta

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        nodes = CandidateNodes.of(shown)
        entropy = -nodes.p.xlogy(nodes.p).sum(dim=-1, keepdim=True)
        threshold = (self._delta * (-entropy).exp()).clamp(max=self._epsilon)
        acceptable = nodes.p > threshold
        return accept_longest(shown, nodes, acceptable)
