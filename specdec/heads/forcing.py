"""Teacher forcing: heads read the text's own tokens and predict those behind them."""

from dataclasses import dataclass

from torch import Tensor, nn

from specdec.heads.base import Heads
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
    heads: Heads, verifier: HFCausalLM, hidden: Tensor, targets: HeadTargets
) -> list[Tensor]:
    """Let heads read the text as it goes on (teacher forcing): hidden [B, T, H] -> K times [n, H].

    `targets` must look as many tokens ahead as there are heads.
    """
    read = hidden if heads.prefix is None else heads.prefix(hidden)
    states = read.flatten(0, 1)[targets.positions]
    known = targets.following_ids[:, : heads.num_heads]
    embeddings = states.new_empty(*known.shape, 0)  # for heads that read no tokens
    if heads.reads_tokens:
        embeddings = verifier.embed(known).to(states.dtype)
    return heads.states(states, embeddings)
