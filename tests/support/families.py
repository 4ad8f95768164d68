"""Tiny random models of every family the project holds; nothing is ever downloaded."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from specdec.lm.placement import device_of
from tests.support.marking import thorough

VOCAB_SIZE = 61
WINDOW = 6  # of the sliding-window families: shorter than most texts of the tests
SMALL = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2}
# Its scaled embeddings, if they were tied, would make each token predict itself.
GEMMA = {"query_pre_attn_scalar": 8, "tie_word_embeddings": False}
HYBRID = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": WINDOW, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gptj": {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8,
        "initializer_range": 0.4,  # less, and it repeats itself
    },
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {},  # one head of keys for all queries
    "phi3": {"sliding_window": WINDOW},
    "gemma2": {"head_dim": 8, **GEMMA, **HYBRID},  # soft caps, so no sdpa
    "gemma3_text": {"head_dim": 8, **GEMMA, **HYBRID},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "olmoe": {**EXPERTS, "num_experts": 4},
    "gpt_oss": {**EXPERTS, "num_local_experts": 4, "head_dim": 8, **HYBRID},
    "deepseek_v3": {  # keys and values of unlike sizes
        **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
        "moe_intermediate_size": 24, "first_k_dense_replace": 1, "kv_lora_rank": 16,
        "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 4,
    },
}  # fmt: skip
# One mask or two, no rotations, latent keys and experts; the others are much like one of these.
TYPICAL = ("llama", "gpt2", "gemma3_text", "mixtral", "deepseek_v3")
EACH_FAMILY = [name if name in TYPICAL else thorough(name) for name in FAMILIES]
LINEAR = {
    "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_hidden_layers": 4,
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8,
    "mamba_chunk_size": 8, "num_hidden_layers": 3,
}  # fmt: skip
CONVOLUTIONS = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
# Layers that keep states, alone or beside attention.
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        **LINEAR, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_5_text": LINEAR,
    "olmo_hybrid": LINEAR,
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"],
        "head_dim": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8,
        "n_groups": 2, "chunk_size": 8,
    },
    "zamba2": {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"],
        "hybrid_layer_ids": [1], "mamba_d_state": 8, "mamba_headdim": 16, "n_mamba_heads": 4,
        "mamba_ngroups": 2, "chunk_size": 8, "num_mem_blocks": 1, "adapter_rank": 4,
        "attention_head_dim": 16,
    },
    "bamba": {**MAMBA2, "attn_layer_indices": [1], "mamba_expand": 2},
    "granitemoehybrid": {
        **MAMBA2, **EXPERTS, "num_local_experts": 4, "shared_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 32, "mamba_d_head": 8, "head_dim": 8},  # both in one
    "lfm2": {**CONVOLUTIONS, "block_multiple_of": 8},  # nothing but inputs of convolutions
    "lfm2_moe": {
        **CONVOLUTIONS, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16,
        "num_dense_layers": 1,
    },
    "mamba2": {
        "num_heads": 4, "head_dim": 16, "expand": 2, "state_size": 8, "n_groups": 2,
        "chunk_size": 8,
    },
    # Several tokens at once start from nothing: the first Mamba.
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "jamba": {
        "num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
        "mamba_dt_rank": 4, "mamba_d_state": 8,
    },
}  # fmt: skip
ONE_AT_A_TIME = frozenset({"mamba", "falcon_mamba", "jamba"})
# Of a single token transformers leaves their bound on time steps out: `generate` mixes two models.
BOUNDED_STEPS = frozenset({"nemotron_h", "zamba2"})
# What some families do to their logits, each far from doing nothing.
SCALED: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 3.0},
}
WINDOWED = frozenset(name for name, kwargs in FAMILIES.items() if "sliding_window" in kwargs)


def tiny_model(
    family: str, seed: int = 0, attention: str | None = None, **overrides: object
) -> PreTrainedModel:
    """Build a random model whose logits vary as much as a trained one's."""
    known = FAMILIES.get(family) or RECURRENT.get(family, {})
    settings = {**SMALL, "initializer_range": 0.3, **known, **overrides}
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention
        )
        _disturb_vectors(model)
    return model.eval()


def _disturb_vectors(model: PreTrainedModel) -> None:
    """Move biases and norms off the zeros and ones they are born with: training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:  # [T, V]
    """Return what the stock model says of ordinary text: one row, no cache, no mask of ours."""
    batch = torch.tensor([list(token_ids)], device=device_of(model))
    return model(input_ids=batch, use_cache=False).logits[0]


def random_ids(num: int, seed: int, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Make an ordinary text: no bos, eos or pad among its tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, vocab_size, (num,), generator=generator).tolist()


def noisy_copy(model: PreTrainedModel, amount: float = 0.1, seed: int = 0) -> PreTrainedModel:
    """Make a draft model that often agrees: the same weights, a little beside."""
    copy = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std(), alpha=amount)
    return copy
