"""A decoder layer that reads two things at each place: a token's embedding, and a feature."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache

from specdec.core.errors import require
from specdec.heads.draft_layer import DraftLayer, linear, norm

CONCAT, PROJECT = "concat", "project"
FUSIONS = (CONCAT, PROJECT)


class FeatureLayer(DraftLayer):
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
        require(fusion in FUSIONS, "fusion", fusion, "one of " + ", ".join(FUSIONS))
        both = 2 * hidden_size
        sizes = (num_attention_heads, num_key_value_heads, intermediate_size)
        super().__init__(hidden_size, both if fusion == CONCAT else hidden_size, *sizes)
        self.norm_embedding, self.norm_feature = norm(hidden_size), norm(hidden_size)
        self.project: nn.Linear | None = None
        if fusion == PROJECT:
            self.project = linear(both, hidden_size)
            self.norm_projected = norm(hidden_size)

    def fused(self, embeddings: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what attention reads [..., H or 2 H], and what its output is added to [..., H]."""
        both = torch.cat([self.norm_embedding(embeddings), self.norm_feature(features)], dim=-1)
        if self.project is None:
            return both, features
        found = self.project(both)
        return self.norm_projected(found), found

    def projected(self, read: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, heads, M, dim], and keys and values [B, key heads, M, dim]."""
        return self.queried(read, positions), *self.keyed(read, positions)

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
