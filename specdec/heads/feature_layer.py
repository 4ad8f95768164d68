"""A decoder layer that reads two things at each place: a token's embedding, and a feature."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers.cache_utils import Cache

from specdec.core.errors import require, require_int
from specdec.heads.rotary import rotated

CONCAT, PROJECT = "concat", "project"
FUSIONS = (CONCAT, PROJECT)
EPSILON = 1e-6  # of norms
HEAD_SIZE = 64  # of attention heads, where their number is left open


class FeatureLayer(nn.Module):
    """One layer over embedding e and feature g [.., H], with rotary positions of its own.

    * `concat` (Li et al. 2025, EAGLE-3, section 3.1): attention reads [norm(e); norm(g)], of 2 H
      numbers, and its output is added to g: 13 H^2 weights.
    * `project` (DeepSeek-V3, 2024, eq. 21): a projection of these 2 H numbers to H goes through an
      ordinary layer: 2 H^2 + 11 H^2 weights.

    The counts are those of half as many heads of keys as of queries, and an MLP of 8/3 H.

    Raises:
        UserError: a size is out of its range, or does not divide another.
    """

    def __init__(
        self,
        hidden_size: int,
        fusion: str,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
    ):
        super().__init__()
        require(fusion in FUSIONS, "fusion", fusion, "one of " + ", ".join(FUSIONS))
        self.num_heads = _num_heads(hidden_size, num_attention_heads)
        self.num_key_value_heads = _num_keys(self.num_heads, num_key_value_heads)
        width = intermediate_size or 8 * hidden_size // 3
        require_int("intermediate_size", width, 1)
        self.head_size = hidden_size // self.num_heads
        keys_size = self.num_key_value_heads * self.head_size
        self.norm_embedding = _norm(hidden_size)
        self.norm_feature = _norm(hidden_size)
        read = 2 * hidden_size
        self.project: nn.Linear | None = None
        if fusion == PROJECT:
            self.project = _linear(read, hidden_size)
            self.norm_projected = _norm(hidden_size)
            read = hidden_size
        self.queries = _linear(read, hidden_size)
        self.keys = _linear(read, keys_size)
        self.values = _linear(read, keys_size)
        self.attended = _linear(hidden_size, hidden_size)
        self.norm_attended = _norm(hidden_size)
        self.gate, self.up = _linear(hidden_size, width), _linear(hidden_size, width)
        self.down = _linear(width, hidden_size)

    def fused(self, embeddings: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what attention reads [..., H or 2 H], and what its output is added to [..., H]."""
        both = torch.cat([self.norm_embedding(embeddings), self.norm_feature(features)], dim=-1)
        if self.project is None:
            return both, features
        found = self.project(both)
        return self.norm_projected(found), found

    def projected(self, read: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, heads, M, dim], and keys and values [B, key heads, M, dim]."""
        shape = (*read.shape[:-1], -1, self.head_size)
        parts = (self.queries(read), self.keys(read), self.values(read))
        queries, keys, values = (part.view(shape).transpose(1, 2) for part in parts)
        return rotated(queries, positions), rotated(keys, positions), values

    def repeated(self, states: Tensor) -> Tensor:  # [B, key heads, L, dim] -> [B, heads, L, dim]
        """Give each head of queries its keys or values."""
        return states.repeat_interleave(self.num_heads // self.num_key_value_heads, dim=1)

    def finished(self, found: Tensor, added_to: Tensor) -> Tensor:
        """Go on behind attention: [B, heads, M, dim], [B, M, H] -> [B, M, H]."""
        hidden = added_to + self.attended(found.transpose(1, 2).flatten(-2))
        read = self.norm_attended(hidden)
        return hidden + self.down(silu(self.gate(read)) * self.up(read))

    def forward(
        self,
        both: Tensor,  # [B, M, 2 H]: embeddings, and features behind them
        positions: Tensor,  # [B, M]
        attention_mask: Tensor,  # [B, 1, M, L], additive
        cache: Cache,
    ) -> Tensor:  # [B, M, H]
        """Read M places behind the cached ones."""
        read, added_to = self.fused(*both.chunk(2, dim=-1))
        queries, keys, values = self.projected(read, positions)
        keys, values = cache.update(keys, values, 0)
        keys, values = self.repeated(keys), self.repeated(values)
        found = scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)
        return self.finished(found, added_to)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _norm(size: int) -> nn.RMSNorm:
    return nn.RMSNorm(size, eps=EPSILON)


def _num_heads(hidden_size: int, given: int | None) -> int:
    """Return how many heads of queries there are: as given, or of about 64 numbers each."""
    if given is None:
        fitting = (n for n in range(hidden_size // HEAD_SIZE, 1, -1) if hidden_size % (2 * n) == 0)
        given = next(fitting, 1)
    require_int("num_attention_heads", given, 1)
    expected = f"a divisor of hidden_size={hidden_size} that leaves an even number"
    require(hidden_size % (2 * given) == 0, "num_attention_heads", given, expected)
    return given


def _num_keys(num_heads: int, given: int | None) -> int:
    """Return how many heads of keys there are: as given, or half as many as of queries."""
    if given is None:
        return num_heads // 2 if num_heads % 2 == 0 else num_heads
    require_int("num_key_value_heads", given, 1)
    expected = f"a divisor of num_attention_heads={num_heads}"
    require(num_heads % given == 0, "num_key_value_heads", given, expected)
    return given
