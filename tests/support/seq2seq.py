"""Tiny random encoder-decoder models, and what the stock model makes of a source."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from tests.support.families import VOCAB_SIZE, _disturb_vectors

T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.3,
    "max_position_embeddings": 64, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": T5,
    "bart": BART,
    "marian": {**BART, "decoder_start_token_id": 1},
    "mt5": {**T5, "is_gated_act": True, "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False},
    "mbart": BART,
    "pegasus": {**BART, "decoder_start_token_id": 1},
    "blenderbot": BART,
    "m2m_100": BART,
}  # fmt: skip
READS_TREES = frozenset(SEQ2SEQ) - {"t5", "mt5", "m2m_100"}


def tiny_seq2seq(family: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """Build a random model whose logits vary as much as a trained one's."""
    settings = {"vocab_size": VOCAB_SIZE, **SEQ2SEQ[family], **overrides}
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
        _disturb_vectors(model)
        _let_tokens_matter(model)
        bias = getattr(model, "final_logits_bias", None)  # zeros, unless it is trained
        if bias is not None:
            bias.add_(torch.randn_like(bias), alpha=0.1)
    return model.eval()


@torch.no_grad()
def _let_tokens_matter(model: Any) -> None:
    """Keep random decoders from writing one token again and again, whatever stands before it."""
    for name, weight in model.get_decoder().named_parameters():
        if name.endswith(("out_proj.weight", ".o.weight", "fc2.weight", "wo.weight")):
            weight.mul_(0.25)
    # One that is tied, as T5's always is, makes each token predict itself.
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))


@torch.inference_mode()
def plain_logits(model: Any, source: Sequence[int], text: Sequence[int]) -> torch.Tensor:  # [T, V]
    """Return what the stock model says of a whole text of its decoder, without any cache."""
    given = {"input_ids": torch.tensor([list(source)])}
    given["decoder_input_ids"] = torch.tensor([list(text)])
    return model(**given, use_cache=False).logits[0]


def generated(model: Any, source: Sequence[int], num: int, **settings: object) -> list[int]:
    """Let transformers write greedily. Its own cache fails where encoder and decoder differ in
    depth (T5 of 5.24), so it has none."""
    ids = torch.tensor([list(source)])
    options = {"eos_token_id": None, **settings}
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num,
        do_sample=False,
        num_beams=1,
        use_cache=False,
        **options,
    )
    return found[0, 1:].tolist()
