"""A layer whose keys and values come from the verifier's features, and from its own block."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache

from specdec.heads.block_attention import attended
from specdec.heads.draft_layer import DraftLayer, norm


class BlockLayer(DraftLayer):
    """One layer of DFlash (Chen et al. 2026, arXiv 2602.06036), of 11 H^2 weights.

    Keys and values of the text are projections of its fused features, the same features for every
    layer; those of the block's slots are projected by the same weights. The text has no queries.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
    ):
        sizes = (num_attention_heads, num_key_value_heads, intermediate_size)
        super().__init__(hidden_size, hidden_size, *sizes, norm_heads=True)
        self.norm_read = norm(hidden_size)

    def packed(
        self,
        hidden: Tensor,  # [B, A, S, H]
        positions: Tensor,  # [B, A, S]
        context: Tensor,  # [B, T, H]
        places: Tensor,  # [B, T]
        last: Tensor,  # [B, A]
        is_causal: bool,
    ) -> Tensor:  # [B, A, S, H]
        """Go through A blocks along each text, none of which sees another; see `attended`."""
        shape, flat = hidden.shape[1:3], hidden.flatten(1, 2)
        read, at = self.norm_read(flat), positions.flatten(1, 2)
        queries = self.queried(read, at).unflatten(2, shape)
        own = tuple(self.repeated(part).unflatten(2, shape) for part in self.keyed(read, at))
        text = tuple(self.repeated(part) for part in self.keyed(context, places))
        found = attended(queries, (text[0], text[1]), (own[0], own[1]), last, is_causal)
        return self.finished(found.flatten(2, 3), flat).unflatten(1, shape)

    def cached(
        self,
        hidden: Tensor,  # [B, S, H]
        positions: Tensor,  # [B, S]
        attention_mask: Tensor,  # [B, 1, S, L], additive
        cache: Cache,
        number: int,
    ) -> Tensor:  # [B, S, H]
        """Go through one block behind the text that the cache's layer of this `number` holds."""
        read = self.norm_read(hidden)
        keys, values = cache.update(*self.keyed(read, positions), number)
        keys, values = self.repeated(keys), self.repeated(values)
        queries = self.queried(read, positions)
        found = scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)
        return self.finished(found, hidden)
