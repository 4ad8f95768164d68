"""Accept whatever is among the verifier's k likeliest tokens. Not lossless."""

from specdec.core.errors import require_int
from specdec.core.shown import Shown
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.longest_path import accept_longest


class TopK(Batched):
    """Accept x if it is among the k likeliest tokens of p and not impossible.

    Ties with the k-th are accepted too. The longest path of such tokens wins; what follows it is
    drawn from p. At temperature 0, where p is one token, nothing else is accepted.
    """

    lossless_for = frozenset[Draw]()
    defined_for = frozenset({Draw.DETERMINISTIC, Draw.SINGLE})
    needs_q = False

    def __init__(self, k: int = 3):
        require_int("k", k, 1)
        self._k = k

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        nodes = CandidateNodes.of(shown)
        least = nodes.p.topk(min(self._k, nodes.p.shape[-1]), dim=-1).values[..., -1:]
        acceptable = (nodes.p >= least) & (nodes.p > 0)
        return accept_longest(shown, nodes, acceptable)
