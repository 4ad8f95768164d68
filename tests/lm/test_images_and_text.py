"""Checkpoints for images and text read text alone, as their own `generate` does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.accounting import cells_of, weights_of
from specdec.lm.check import prove
from specdec.lm.check_states import states_differ
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load, weightless
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.tree.dynamic import Dynamic
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.support.families import random_ids
from tests.support.running import Tiny

VOCAB_SIZE = 300
TEXT = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96,
    "head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
CLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
QWEN = {
    "depth": 1, "num_heads": 2, "intermediate_size": 24, "patch_size": 14,
    "hidden_size": 16, "out_hidden_size": 32,
}  # fmt: skip
# Rotations in three parts, for time, height and width: alike where there is only text.
PARTS = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}
MARKS = {
    "image_token_id": VOCAB_SIZE - 1, "video_token_id": VOCAB_SIZE - 2,
    "vision_start_token_id": VOCAB_SIZE - 3, "vision_end_token_id": VOCAB_SIZE - 4,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **CLIP},
        "image_token_index": VOCAB_SIZE - 1,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": {"model_type": "pixtral", **CLIP},
        "image_token_index": VOCAB_SIZE - 1,
    },
    "qwen2_vl": {
        "text_config": {**TEXT, **PARTS},
        "vision_config": {**QWEN, "embed_dim": 16, "hidden_size": 32},
        **MARKS,
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, **PARTS},
        "vision_config": {**QWEN, "fullatt_block_indexes": [0]},
        **MARKS,
    },
    "qwen3_vl": {
        "text_config": {**TEXT, **PARTS},
        "vision_config": {**QWEN, "deepstack_visual_indexes": [0]},
        **MARKS,
    },
    "gemma3": {
        "text_config": {
            **TEXT, "query_pre_attn_scalar": 8, "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {"model_type": "siglip_vision_model", **CLIP},
        "mm_tokens_per_image": 1,
        "image_token_index": VOCAB_SIZE - 1,
    },
}  # fmt: skip
each_model = pytest.mark.parametrize("name", MODELS)


def built(name: str, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(name, **MODELS[name])
        return AutoModelForImageTextToText.from_config(config).eval()


@each_model
def test_they_are_proven_and_write_what_generate_writes(name: str) -> None:
    model = built(name)
    assert prove(model, name) < 1e-4
    assert states_differ(model) is None
    lm = HFCausalLM(model)
    assert (lm.vocab_size, lm.state_size, lm.max_length) == (VOCAB_SIZE, 32, 96)
    texts = [random_ids(num, seed=num, vocab_size=VOCAB_SIZE - 9) for num in (11, 4)]
    expected: list[list[int]] = []
    for text in texts:
        batch = torch.tensor([text])
        written = model.generate(
            batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=12
        )
        expected.append(written[0, len(text) :].tolist())
    heads = MedusaHeads(32, VOCAB_SIZE, 2)
    for proposer in (
        DraftModel(HFCausalLM(built(name, seed=1)), Dynamic(6, 3, 3)),
        Medusa(heads, lm, Sparse([[0, 0], [1, 0], [0, 1]])),
    ):
        decoder = SpeculativeDecoder(lm, proposer, Rejection(), Sampling(0), Stopping(12), batch=2)
        traces = decoder.decode([Request(str(row), text) for row, text in enumerate(texts)])
        assert [list(trace.output_ids) for trace in traces] == expected


@each_model
def test_bytes_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    built(name).save_pretrained(tmp_path)
    shapes = weightless(Checkpoint(str(tmp_path)), torch.float16)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float16).eval()
    assert weights_of(shapes) == weights_of(model)
    assert cells_of(shapes) == cells_of(model)


def test_a_folder_is_loaded_for_its_text(tiny: Tiny, tmp_path: Path) -> None:
    built("llava").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(str(tiny.verifier)).save_pretrained(tmp_path)
    lm = load(tmp_path)
    assert type(lm.model).__name__ == "LlavaForConditionalGeneration"
    assert lm.tree_error is not None
    assert load(tmp_path, field="draft.path", vocabulary_of=str(tiny.verifier)).vocab_size == 300


def test_one_that_reads_its_prompt_both_ways_is_refused_with_the_reason() -> None:
    config = AutoConfig.for_model(
        "paligemma",
        text_config={"model_type": "gemma", **TEXT},
        vision_config={"model_type": "siglip_vision_model", **CLIP},
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    with pytest.raises(UserError, match="paligemma is not supported: a forward of candidates"):
        prove(model, "x")
