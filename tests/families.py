"""Tiny random models of every family the project holds; nothing is ever downloaded."""

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

VOCAB_SIZE = 61
SMALL = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {"sliding_window": 6},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "olmoe": {**EXPERTS, "num_experts": 4},
    "gpt_oss": {**EXPERTS, "num_local_experts": 4, "head_dim": 8, "sliding_window": 6,
                "layer_types": ["sliding_attention", "full_attention"]},
}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Build a random model whose logits vary as much as a trained one's."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SMALL, "initializer_range": 0.3, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()
