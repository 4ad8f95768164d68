"""The shape of a model that is trained from scratch."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from specdec.core.errors import require, require_int, require_number

PER_TOKEN = 2  # experts, as Mixtral has them (Jiang et al. 2024)
BALANCE = 0.01  # Fedus et al. 2022, section 2.2; Muennighoff et al. 2024 (OLMoE)


@dataclass(frozen=True)
class Experts:
    """What makes a mixture of experts of a model, in place of each layer's feed-forward network.

    Args:
        num_experts: of a layer, each as large as that network would be.
        experts_per_token: that its router takes for a token.
        router_aux_loss_coef: weight of their balance in the loss, see `training.balance`; 0: none.

    Raises:
        UserError: a number is out of range.
    """

    num_experts: int
    experts_per_token: int
    router_aux_loss_coef: float

    def __post_init__(self) -> None:
        require_int("num_experts", self.num_experts, 2)
        require_int("experts_per_token", self.experts_per_token, 1)
        fits = self.experts_per_token <= self.num_experts
        expected = f"at most num_experts={self.num_experts}"
        require(fits, "experts_per_token", self.experts_per_token, expected)
        require_number("router_aux_loss_coef", self.router_aux_loss_coef, 0)


def experts_of(
    num_experts: int | None, experts_per_token: int | None, router_aux_loss_coef: float | None
) -> Experts | None:
    """Read options; None: a dense model.

    Raises:
        UserError: a number is out of range, or there are options of experts and no experts.
    """
    given = {"experts_per_token": experts_per_token, "router_aux_loss_coef": router_aux_loss_coef}
    if num_experts is None:
        for name, value in given.items():
            require(value is None, name, value, "num_experts=8, too")
        return None
    balance = BALANCE if router_aux_loss_coef is None else router_aux_loss_coef
    return Experts(
        num_experts, PER_TOKEN if experts_per_token is None else experts_per_token, balance
    )


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
        self,
        vocab_size: int,
        context: int,
        end_id: int | list[int] | None,
        seed: int,
        experts: Experts | None = None,
    ) -> PreTrainedModel:
        """Return a model with random weights that `seed` fixes: a Llama, or a Mixtral."""
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {
            "vocab_size": vocab_size,
            **asdict(self),
            "num_key_value_heads": self.num_attention_heads,
            "max_position_embeddings": context,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": end_id,
            "pad_token_id": None,
        }
        if experts is None:
            return LlamaForCausalLM(LlamaConfig(**sizes))
        return MixtralForCausalLM(
            MixtralConfig(
                **sizes,
                num_local_experts=experts.num_experts,
                num_experts_per_tok=experts.experts_per_token,
                router_aux_loss_coef=experts.router_aux_loss_coef,
            )
        )
