"""A chain that a model drafts by itself: each token is drawn after the one before it."""

from typing import NamedTuple

from torch import Tensor

from specdec.core.sampling import Sampling, draw
from specdec.core.unlike_vocabularies import fitted


class DraftChain(NamedTuple):
    """How a chain is drafted: `depth` tokens, each from a distribution of `vocab_size` tokens."""

    depth: int
    sampling: Sampling  # temperature, top-k, top-p and min-p alone
    vocab_size: int

    def drawn(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Turn logits [B, n, V of the draft] and uniforms [B, n] into q [B, n, V] and tokens."""
        probs = self.sampling.warp(fitted(logits, self.vocab_size))
        # Where the draft's numbers are NaN, nothing is below the target; the verifier decides.
        token_ids = draw(probs, uniforms[..., None])[..., 0].clamp_(max=self.vocab_size - 1)
        return probs, token_ids


class DraftedChain(NamedTuple):
    """What was drafted for B requests."""

    token_ids: Tensor  # [B, depth]
    draft_probs: Tensor  # [B, depth, V]: what each token was drawn from
