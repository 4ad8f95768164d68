"""Chains of which only those draft tokens are submitted that pass a filter."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from specdec.core.errors import require_int, require_number
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw, Level
from specdec.tree.chain import Chain


class Filtered(Chain):
    """A chain that ends before the first drawn token that is too unlikely to be worth verifying.

    A token passes if the draft gives it at least `min_prob` and, where `top_k` is not 0, if it is
    among the draft's `top_k` likeliest (ties included). Whether a token is submitted depends on the
    token itself, so that leaving it out would bias the text, if the rule did not know: the recorded
    distribution is q restricted to what passes, and the rule draws from the residual of that
    distribution where a token was withheld. In other words, "no candidate" is one more draft token,
    of verifier probability 0.

    Args:
        gamma: draft tokens at most.
        min_prob: what the draft must give a token, from 0 to 1.
        top_k: a token must be among so many of the likeliest; 0: any rank will do.
        min_confidence: drafting ends before a token that the draft gives less probability.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self, gamma: int, min_prob: float = 0.1, top_k: int = 0, min_confidence: float = 0.0
    ):
        super().__init__(gamma, min_confidence)
        require_number("min_prob", min_prob, 0.0, 1.0)
        require_int("top_k", top_k, 0)
        self.draw = Draw.FILTERED
        self.passing = (min_prob, top_k)

    @property
    def may_stop(self) -> bool:
        """Nothing follows a token that was withheld."""
        return True

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        """Draw a token, and say whether it is submitted."""
        level = super().expand(above, depth, draft_probs, streams)
        passing = self.passed(draft_probs, *self.passing)
        shown = passing.gather(-1, level.token_ids[..., None]).squeeze(-1) > 0
        return replace(level, shown=shown, draft_probs=passing)

    @staticmethod
    def passed(draft_probs: Tensor, min_prob: float, top_k: int) -> Tensor:  # [..., V], both
        """Return what distributions give to the tokens that pass, not renormalised."""
        passes = draft_probs >= min_prob
        if 0 < top_k < draft_probs.shape[-1]:
            passes &= draft_probs >= draft_probs.topk(top_k, dim=-1).values[..., -1:]
        return draft_probs * passes
