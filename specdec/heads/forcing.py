"""Teacher forcing: heads read the text's own tokens and predict those behind them."""

from dataclasses import dataclass

from torch import Tensor, nn

from specdec.heads.base import DraftHeads
from specdec.lm.hf import HFCausalLM


@dataclass(frozen=True)
class HeadTargets:
    """The n positions of a flattened text [B * T] that heads predict from, and what follows."""

    positions: Tensor  # [n]
    following_ids: Tensor  # [n, K + 1]: the tokens at t + 1 ... t + 1 + K
    wanted: Tensor  # [n, K] bool: whether head i's token t + 2 + i is there and counts

    @classmethod
    def of(cls, token_ids: Tensor, counted: Tensor, num_heads: int) -> "HeadTargets":  # [B, T] each
        """Take every position from which a counted token is within reach of the heads."""
        following = nn.functional.pad(token_ids, (0, num_heads + 1))[:, 1:]
        ahead = nn.functional.pad(counted, (0, num_heads + 1))[:, 2:]
        wanted = ahead.unfold(1, num_heads, 1).flatten(0, 1)
        positions = wanted.any(dim=1).nonzero()[:, 0]
        ids = following.unfold(1, num_heads + 1, 1).flatten(0, 1)
        return cls(positions, ids[positions], wanted[positions])

    def with_all(self, depth: int) -> "HeadTargets":
        """Choose the positions that the first `depth` heads all predict from."""
        return self.at(self.wanted[:, :depth].all(dim=1))

    def at(self, chosen: Tensor) -> "HeadTargets":  # [m] places, or [n] bool
        """Choose some of the positions."""
        return HeadTargets(self.positions[chosen], self.following_ids[chosen], self.wanted[chosen])


def forced_states(
    heads: DraftHeads,
    verifier: HFCausalLM,
    hidden: Tensor,  # [B, T, W]: what is read, side by side; what stands behind is the teacher's
    token_ids: Tensor,  # [B, T]
    targets: HeadTargets,
) -> list[Tensor]:
    """Let heads read the text as it goes on (teacher forcing); return D times [n, H].

    D is how many tokens ahead `targets` look.
    """
    features = hidden[..., : heads.feature_size]
    behind = targets.positions, targets.following_ids
    return heads.forced(features, token_ids, *behind, verifier.embed)
