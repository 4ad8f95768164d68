"""Bytes that follow from a configuration are those that are allocated, in every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache

from specdec.lm.accounting import (
    LayerCache,
    cells_of,
    on_meta,
    stock_cells_of,
    stock_kept,
    weights_of,
)
from specdec.lm.encoder_decoder import EncoderDecoderLM
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from tests.support.families import (
    FAMILIES,
    RECURRENT,
    SMALL,
    WINDOW,
    WINDOWED,
    random_ids,
    tiny_model,
)
from tests.support.seq2seq import tiny_seq2seq

MIB = 2**20
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BUILD = AutoModelForCausalLM.from_config


def loaded(family: str, dtype: torch.dtype, folder: Path) -> PreTrainedModel:
    """Save a tiny model and load it again, in a type: some weights of a family stay wide."""
    tiny_model(family).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_loaded_model(family: str, dtype: str, tmp_path: Path) -> None:
    model = loaded(family, TYPES[dtype], tmp_path)
    shapes = on_meta(BUILD, AutoConfig.from_pretrained(tmp_path), TYPES[dtype])
    assert weights_of(shapes) == weights_of(model)
    named = {name: each.dtype for name, each in model.named_parameters()}
    assert {name: each.dtype for name, each in shapes.named_parameters()} == named
    lm = HFCausalLM(model)
    lm.prefill([0], [[0]])
    found = cells_of(shapes)
    assert [each.cell_bytes for each in found] == lm.cell_bytes
    assert cells_of(model) == found
    assert all(not each.state_bytes for each in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_are_as_large_as_buffers_say(family: str) -> None:
    """What is allocated for rows of a capacity is that many cells."""
    model = tiny_model(family)
    lm = HFCausalLM(model)
    lm.open(3, 17)
    lm.prefill([0], [[0]])
    allocated = sum(each.nbytes for each in lm._cache.buffers(range(3), 17))
    assert allocated == 3 * 17 * sum(each.cell_bytes for each in cells_of(model))


def llama_of(num_key_value_heads: int) -> PreTrainedConfig:
    """Return a configuration of 80 layers and a hidden size of 8192: 64 heads of 128."""
    return LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=num_key_value_heads,
        vocab_size=32000,
        max_position_embeddings=4096,
    )


@pytest.mark.parametrize(("heads", "num_bytes"), [(64, 2.5 * MIB), (8, 320 * 1024)])
def test_a_large_model_takes_what_is_known_of_it(heads: int, num_bytes: float) -> None:
    model = on_meta(BUILD, llama_of(heads), torch.float16)
    layers = cells_of(model)
    assert len(layers) == 80
    assert {each.num_heads for each in layers} == {heads}
    assert sum(each.cell_bytes for each in layers) == num_bytes
    weights = weights_of(model)
    per_layer = 2 * 8192 * 8192 + 2 * 8192 * heads * 128 + 3 * 8192 * 28672 + 2 * 8192
    assert weights.num_parameters == 80 * per_layer + 2 * 32000 * 8192 + 8192
    assert weights.num_bytes == 2 * weights.num_parameters


def test_tied_weights_count_once() -> None:
    config = AutoConfig.for_model("llama", **SMALL, tie_word_embeddings=True)
    tied = weights_of(on_meta(BUILD, config, torch.float32))
    config.tie_word_embeddings = False
    untied = weights_of(on_meta(BUILD, config, torch.float32))
    assert untied.num_parameters - tied.num_parameters == 61 * 32
    assert untied.num_bytes - tied.num_bytes == 4 * 61 * 32


def test_a_configuration_stays_as_it_is() -> None:
    config = AutoConfig.for_model("mixtral", **SMALL)
    before = config.to_dict()
    on_meta(BUILD, config, torch.float16)
    assert config.to_dict() == before


# --- Caches of transformers ---


@torch.inference_mode()
def stock_cache(model: PreTrainedModel, length: int) -> Cache:
    """Let the stock model read a text and return the cache that it made."""
    text = torch.tensor([random_ids(length, seed=1)])
    output: Any = model(input_ids=text, use_cache=True)
    (found,) = (each for each in output.values() if isinstance(each, Cache))
    return found


@pytest.mark.parametrize("length", [WINDOW - 2, WINDOW, 3 * WINDOW])
@pytest.mark.parametrize("family", ["llama", *sorted(WINDOWED)])
def test_a_stock_cache_keeps_so_many_cells(family: str, length: int) -> None:
    model = tiny_model(family)
    cache: Any = stock_cache(model, length)
    kept = [layer.keys.shape[2] for layer in cache.layers]
    assert stock_kept(model.config, cells_of(model), length) == kept
    assert (min(kept) < length) == (family in WINDOWED and length >= WINDOW)


@pytest.mark.parametrize("family", RECURRENT)
def test_states_are_as_large_as_those_that_decoding_keeps(family: str) -> None:
    model = tiny_model(family)
    found = stock_cells_of(on_meta(BUILD, model.config, torch.float32))
    assert found == stock_cells_of(model)
    lm = causal_lm(model)
    lm.prefill([0], [[0, 1, 2]])
    cache: Any = lm._cache
    assert sum(each.state_bytes for each in found) == cache.state_bytes > 0
    assert sum(each.cell_bytes for each in found) == sum(lm.cell_bytes)


def test_a_plain_decoder_keeps_the_same_in_both_caches() -> None:
    model = tiny_model("llama")
    assert stock_cells_of(model) == cells_of(model) == [LayerCache(2 * 2 * 8 * 4, 2)] * 2


@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_an_encoder_takes_nothing_and_its_source_as_much_as_text(family: str) -> None:
    model = tiny_seq2seq(family)
    lm = EncoderDecoderLM(model)
    lm.open(1, 8)
    lm.prefill([0], [[3, 4, 5]])
    lm.prefill([0], [[6]])
    shapes = on_meta(AutoModelForSeq2SeqLM.from_config, model.config, torch.float32)
    assert [each.cell_bytes for each in cells_of(shapes)] == lm.cell_bytes
    assert stock_kept(model.config, cells_of(shapes), 9) == [9] * len(lm.cell_bytes)
