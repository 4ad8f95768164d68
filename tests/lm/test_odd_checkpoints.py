"""Checkpoints in odd states: the text of `generate()`, or one line that says what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.stopping import Stopping
from specdec.lm.load import load
from specdec.proposer.ngram import NGram
from specdec.verification.rejection import Rejection
from tests.support.families import tiny_model
from tests.support.running import Tiny

TEXT = "def add(first, second):\n    return first"
WEIGHTS = "model.safetensors"


def rewrite(folder: Path, file: str = "config.json", **values: Any) -> None:
    """Change some of what a file says; None takes it out."""
    place = folder / file
    found = json.loads(place.read_text(encoding="utf-8")) | values
    kept = {name: value for name, value in found.items() if value is not None}
    place.write_text(json.dumps(kept), encoding="utf-8")


def of_generation(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, "generation_config.json", **values)


def of_model(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, **values)


def in_bin(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def in_sharded_bin(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    place = {name: f"pytorch_model-{n % 2}.bin" for n, name in enumerate(weights)}
    for file in set(place.values()):
        torch.save({n: w for n, w in weights.items() if place[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": place}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def ends_in_config_alone(folder: Path) -> None:
    without("generation_config.json")(folder)
    rewrite(folder, eos_token_id=[3, 9])


def with_numbers(value: float) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        weights = {name: w.fill_(value) for name, w in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return fill


def moved_within(folder: Path) -> None:
    shutil.copytree(folder, folder / "final")
    (folder / "config.json").unlink()


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.verifier, tmp_path / "copy"))


def text_of(folder: Path) -> list[int]:
    verifier = load(str(folder))
    stopping = Stopping.of(verifier, max_new_tokens=16)
    decoder = SpeculativeDecoder(verifier, NGram(3), Rejection(), Sampling(0.0), stopping)
    return list(decoder.decode(TEXT)[0].output_ids)


def generated(folder: Path) -> list[int]:
    ids = AutoTokenizer.from_pretrained(str(folder))(TEXT, return_tensors="pt")["input_ids"]
    stock: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    found = stock.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)
    return found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "change",
    [
        in_bin, in_sharded_bin, ends_in_config_alone, with_numbers(0.0),
        without("generation_config.json"), without("tokenizer_config.json"),
        of_generation(eos_token_id=[2, 5, 77]), of_generation(eos_token_id=99999),
        of_generation(max_length=8, num_return_sequences=1), of_model(dtype="bfloat16"),
        of_model(num_hidden_layers=1), of_model(tie_word_embeddings=True),
        of_model(architectures=["LlamaForSequenceClassification"]),
    ],
)  # fmt: skip
def test_the_text_is_that_of_generate(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    assert text_of(folder) == generated(folder)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "opt", "gemma3_text", "mixtral", "falcon"])
def test_so_it_is_of_sharded_weights_of_every_kind(family: str, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny_model(family, vocab_size=300)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    AutoTokenizer.from_pretrained(str(tiny.verifier)).save_pretrained(tmp_path)
    assert text_of(tmp_path) == generated(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (moved_within, "no config.json in that folder; there is one in final; expected"),
        (of_model(vocab_size=310), "weights have other sizes than config.json says: lm_head.weight"
         " is [300, 32], not [310, 32]"),
        (of_model(num_hidden_layers=4), "and 15 more"),
        (of_model(num_attention_heads=3), "hidden size (32) is not a multiple of"),
        (of_model(max_position_embeddings="long"), "expected int, got str"),
        (of_model(max_position_embeddings=8), "its context of 8 tokens is too short"),
        (of_model(dtype="float3"), "float3"),
        (of_generation(eos_token_id="x"), "generation_config.json: eos_token_id='x': expected"),
        (of_generation(eos_token_id=[[1]]), "generation_config.json: eos_token_id=[[1]]: expected"),
        (of_generation(stop_strings=5), "generation_config.json: stop_strings=5: expected text"),
        (with_numbers(float("nan")), "logits that are not numbers (NaN)"),
        (lambda folder: (folder / "generation_config.json").write_text("[1]"), "not loaded"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "not loaded"),
        (without("tokenizer.json", "tokenizer_config.json"), "no tokenizer in that folder"),
    ],
)  # fmt: skip
def test_or_there_is_one_line(change: Callable[[Path], Any], said: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(UserError) as caught:
        text_of(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert said in message
    assert len(message) < 500
