"""Prefix attention: let heads look at all states of the text, not only at the last one."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from specdec.core.errors import require, require_int
from specdec.lm.cache import cache_word


class PrefixAttention(nn.Module):
    """One decoder layer over the verifier's last hidden states (Ankner et al. 2024, section 4.2).

    What it adds to its input is zero at first, so that a fresh one changes nothing.
    """

    def __init__(self, hidden_size: int, num_attention_heads: int):
        super().__init__()
        require_int("num_attention_heads", num_attention_heads, 1)
        fits = hidden_size % (2 * num_attention_heads) == 0
        expected = f"a divisor of hidden_size={hidden_size} that leaves an even number"
        require(fits, "num_attention_heads", num_attention_heads, expected)
        config = LlamaConfig(
            vocab_size=1,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=1,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_attention_heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        config._attn_implementation = "sdpa"
        self.layer = LlamaDecoderLayer(config, layer_idx=0)
        self._cache_word = cache_word(self.layer.forward)
        self.rotary = LlamaRotaryEmbedding(config)
        nn.init.zeros_(self.layer.self_attn.o_proj.weight)
        nn.init.zeros_(self.layer.mlp.down_proj.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast as any module, but leave the rotations exact: bf16 knows no large angle."""
        exact = self.rotary.inv_freq
        assert isinstance(exact, Tensor)
        super()._apply(fn, recurse)
        there = self.layer.mlp.down_proj.weight.device
        self.rotary.register_buffer("inv_freq", exact.to(there), persistent=False)
        return self

    def forward(
        self,
        hidden: Tensor,  # [B, M, H]
        positions: Tensor | None = None,  # [B, M]
        attention_mask: Tensor | None = None,  # [B, 1, M, L], additive
        cache: Cache | None = None,
    ) -> Tensor:  # [B, M, H]
        """Read M states behind the cached ones; by default a text from its beginning."""
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return self.layer(
            hidden,
            attention_mask=attention_mask,
            **{self._cache_word: cache},
            position_embeddings=self.rotary(hidden, positions),
        )
