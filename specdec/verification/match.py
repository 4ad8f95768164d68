"""Sample from the verifier, and go on while a candidate is what was sampled."""

from torch import Tensor

from specdec.core.closed_form import ClosedForm
from specdec.core.randomness import Stream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.match_form import FORMS
from specdec.verification.walk import follow


class Match:
    """Draw y ~ p at each node and go on to the child y if there is one; else emit y.

    Every emitted token is the verifier's own draw, so the rule is lossless for whatever candidates,
    provided that they owe nothing to that draw. It needs no q, and accepts sum_v p q of a sampled
    candidate, where rejection accepts sum_v min(p, q).
    """

    lossless_for = frozenset(Draw)
    defined_for = lossless_for
    needs_q = False
    decided_by_text = lossless_for

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree. Row i of `verifier_probs` [N+1, V] is p after node i."""
        return follow(proposal, verifier_probs, stream)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        return FORMS.get(draw)
