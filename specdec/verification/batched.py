"""Rules that are written for a batch."""

from abc import ABC, abstractmethod

from torch import Tensor

from specdec.core.randomness import Stream
from specdec.core.shown import Shown
from specdec.core.values import Draw, Proposal, Verdict


class Batched(ABC):
    """A rule that is written for a batch, of which a single tree is the smallest."""

    lossless_for: frozenset[Draw]
    defined_for: frozenset[Draw]
    needs_q: bool

    @abstractmethod
    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree. Row i of `verifier_probs` [N+1, V] is p after node i."""
        return self.verify_all(Shown([proposal], verifier_probs[None], [stream]))[0]
