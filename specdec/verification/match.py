"""Sample from the verifier, and go on while a candidate is what was sampled."""

from specdec.core.closed_form import ClosedForm
from specdec.core.shown import Shown
from specdec.core.values import Draw, Verdict
from specdec.verification.batched import Batched
from specdec.verification.match_form import FORMS
from specdec.verification.walk import follow


class Match(Batched):
    """Draw y ~ p at each node and go on to the child y if there is one; else emit y.

    Every emitted token is the verifier's own draw, so the rule is lossless for whatever candidates,
    provided that they owe nothing to that draw. It needs no q, and accepts sum_v p q of a sampled
    candidate, where rejection accepts sum_v min(p, q).
    """

    lossless_for = frozenset(Draw)
    defined_for = lossless_for
    needs_q = False
    decided_by_text = lossless_for

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        return follow(shown)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        return FORMS.get(draw)
