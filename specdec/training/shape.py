"""The shape of a model that is trained from scratch."""

from dataclasses import asdict, dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.core.errors import require, require_int


@dataclass(frozen=True)
class LlamaShape:
    """A Llama's sizes; one head of keys and values for each head of queries, tied embeddings.

    Raises:
        UserError: a size is no positive integer, or the heads do not divide the hidden size.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            require_int(name, value, 1)
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of num_attention_heads={self.num_attention_heads}",
        )

    def fresh(
        self, vocab_size: int, context: int, end_id: int | list[int] | None, seed: int
    ) -> LlamaForCausalLM:
        """Return a model with random weights that `seed` fixes."""
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                **asdict(self),
                num_key_value_heads=self.num_attention_heads,
                max_position_embeddings=context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=end_id,
                pad_token_id=None,
            )
        )
