"""Weights of int8: near the model's own, told apart from it, and as good a draft."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import specdec as sd
from specdec.core.errors import UserError
from specdec.lm.fingerprint import differences, fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.lm.loadable import require_loadable
from specdec.lm.quantization import NAMES, as_numbers, num_bytes, quantized
from tests.support.families import FAMILIES, plain_logits, random_ids, tiny_model
from tests.support.traced import traced_steps

# An extra that `make test-versions` installs; elsewhere only what is refused can be tested.
INSTALLED = find_spec("torchao") is not None
with_torchao = pytest.mark.skipif(not INSTALLED, reason="torchao is not installed")


@with_torchao
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral"])
def test_logits_are_near_the_models_own(family: str) -> None:
    assert family in FAMILIES
    text = random_ids(12, seed=1)
    plain = plain_logits(tiny_model(family), text)
    rounded = plain_logits(quantized(tiny_model(family)), text)
    error = float((rounded - plain).norm() / plain.norm())
    assert 1e-5 < error < 5e-2


@with_torchao
def test_another_model_is_told_apart_from_it() -> None:
    plain, rounded = sd.load("zoo:draft"), sd.load("zoo:draft", quantization="int8")
    assert (plain.precision, rounded.precision) == ("float32", "float32 of int8 weights")
    assert differences(fingerprint(plain), fingerprint(rounded)) == ["weights"]
    assert fingerprint(sd.load("zoo:draft", quantization="int8")) == fingerprint(rounded)
    head = rounded.model.get_output_embeddings()
    assert head is not None
    assert as_numbers(head.weight.detach()).shape == head.weight.shape
    # A byte for each number; for each output a scale of four, and an offset of one.
    vocab_size, hidden_size = head.weight.shape
    assert num_bytes(head.weight) == vocab_size * (hidden_size + 5)


@with_torchao
def test_it_drafts_as_well() -> None:
    """The verifier decides, so the text is the same, in hardly more steps."""
    verifier = sd.load("zoo:verifier")
    steps: dict[str | None, int] = {}
    texts: list[object] = []
    for quantization in (None, "int8"):
        draft = sd.load("zoo:draft", vocabulary_of="zoo:verifier", quantization=quantization)
        proposer = sd.DraftModel(draft, sd.Chain(4))
        stopping = sd.Stopping(max_new_tokens=48)
        decoder = sd.SpeculativeDecoder(
            verifier, proposer, sd.Rejection(), sd.Sampling(0), stopping
        )
        (trace,) = decoder.decode([sd.Request("a", verifier.encode("import os\n\ndef main("))])
        steps[quantization] = len(trace.steps)
        texts.append(trace.output_ids)
    assert texts[0] == texts[1]
    assert steps["int8"] <= 1.2 * steps[None]


@with_torchao
@pytest.mark.thorough
def test_its_steps_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.hf.steps_of", traced_steps)
    model = quantized(tiny_model("llama"))
    found: list[torch.Tensor] = []
    for runtime in ("eager", "compiled"):
        lm = HFCausalLM(model, runtime=runtime)
        lm.prefill([0], [[5, 6, 7]])
        found += [lm.forward([0], torch.tensor([[3, 4]])).logits for _ in range(2)]
    assert torch.allclose(found[1], found[3], atol=1e-4)


def saved(folder: Path, quantization: dict[str, object] | None = None) -> str:
    """Save a model wide enough for the blocks of all methods, with the tokenizer of the zoo."""
    # The vocabulary is the zoo's, so that texts can be written.
    tokenizer = sd.load("zoo:draft").tokenizer
    assert tokenizer is not None
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    model = tiny_model("llama", vocab_size=len(tokenizer.get_vocab()), **sizes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if quantization is not None:
        file = folder / "config.json"
        written = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**written, "quantization_config": quantization}))
    return str(folder)


def written_by(verifier: HFCausalLM, proposer: object) -> list[object]:
    stopping = sd.Stopping(max_new_tokens=12)
    decoder = sd.SpeculativeDecoder(
        verifier,
        proposer,  # pyright: ignore[reportArgumentType]
        sd.Rejection(),
        sd.Sampling(0),
        stopping,
        batch=2,
    )
    texts = ["import os\n\ndef main(", "class A:"]
    found = decoder.decode([sd.Request(text, verifier.encode(text)) for text in texts])
    return [trace.output_ids for trace in found]


@pytest.mark.parametrize(
    ("name", "near"), [("int8", 4e-2), ("int4", 0.4), ("bnb_8bit", 5e-2), ("bnb_4bit", 0.4)]
)
def test_each_way_to_round_is_near_the_model_and_proven(
    name: str, near: float, tmp_path: Path
) -> None:
    pytest.importorskip(NAMES[name])
    path = saved(tmp_path)
    text = random_ids(12, seed=1)
    plain, rounded = sd.load(path), sd.load(path, quantization=name)
    truth, found = plain_logits(plain.model, text), plain_logits(rounded.model, text)
    assert 1e-4 < float((found - truth).norm() / truth.norm()) < near
    assert rounded.precision == f"float32 of {name} weights"
    assert rounded.tree_error is not None
    # bitsandbytes multiplies in 8 bits or in bfloat16, where a rounding of float32 tips numbers.
    assert rounded.tree_error < (0.1 if name.startswith("bnb") else 1e-4)
    assert differences(fingerprint(plain), fingerprint(rounded))[-1] == "weights"


def test_a_wrong_mask_is_refused_of_rounded_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what is allowed for rounding is far from what a wrong forward does."""
    pytest.importorskip("bitsandbytes")
    path = saved(tmp_path)

    def all_seen(attend: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(attend.shape, dtype=dtype)[:, None]

    monkeypatch.setattr("specdec.lm.mask.additive", all_seen)
    with pytest.raises(UserError, match="differs from plain forwards"):
        sd.load(path, quantization="bnb_8bit")


@pytest.mark.parametrize("name", ["int4", "bnb_4bit"])
def test_texts_are_those_of_the_same_weights_alone(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NAMES[name])
    verifier = sd.load(saved(tmp_path), quantization=name)
    assert written_by(verifier, sd.NGram(3)) == written_by(verifier, sd.NoProposer())


@pytest.mark.parametrize("name", ["int4", "bnb_4bit", "bnb_8bit"])
def test_a_checkpoint_of_rounded_weights_is_loaded_as_it_is(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NAMES[name])
    first = sd.load(saved(tmp_path / "plain"), quantization=name)
    assert first.tokenizer is not None
    first.model.save_pretrained(tmp_path / "rounded")
    first.tokenizer.save_pretrained(tmp_path / "rounded")
    again = sd.load(tmp_path / "rounded")
    text = random_ids(12, seed=1)
    truth, found = plain_logits(first.model, text), plain_logits(again.model, text)
    assert float((found - truth).norm() / truth.norm()) < 1e-5
    method = {"int4": "torchao"}.get(name, "bitsandbytes")
    assert again.precision == f"float32 of {method} weights"
    expected = f"quantization='{name}': the weights of this checkpoint are quantised by {method}"
    with pytest.raises(UserError, match=expected):
        sd.load(tmp_path / "rounded", quantization=name)


@pytest.mark.parametrize(
    ("method", "package"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("aqlm", "aqlm")]
)
def test_a_checkpoint_whose_package_is_missing_names_it(
    method: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.lm.quantization.find_spec", lambda name: None)
    path = saved(tmp_path, {"quant_method": method, "bits": 4, "group_size": 32})
    expected = (
        f"path='{path}': its weights are quantised by {method}, which needs the package {package};"
        f" pip install {package}"
    )
    with pytest.raises(UserError) as caught:
        require_loadable(path)
    assert str(caught.value) == expected


def test_what_goes_with_plain_weights_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.quantization.find_spec", lambda name: True)
    monkeypatch.setattr("specdec.runtime.choice.compiler", lambda: "c++")
    expected = r"quantization='bnb_4bit': run by runtime=eager alone, not by 'compiled'"
    with pytest.raises(UserError, match=expected):
        require_loadable("zoo:draft", quantization="bnb_4bit", runtime="compiled")
    expected = r"device='auto': weights are rounded to int8 on one device"
    with pytest.raises(UserError, match=expected):
        require_loadable("zoo:draft", quantization="int8", device="auto")


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = r"quantization='int3': expected int8, int4, bnb_8bit, bnb_4bit, or null"
    with pytest.raises(UserError, match=expected):
        sd.load("zoo:draft", quantization="int3")
    monkeypatch.setattr("specdec.lm.quantization.find_spec", lambda name: None)
    expected = r"quantization='int8': needs the package torchao; pip install 'specdec-lab\[int8\]'"
    with pytest.raises(UserError, match=expected):
        sd.load("zoo:draft", quantization="int8")
    expected = r"quantization='bnb_4bit': needs the package bitsandbytes; pip install bitsandbytes"
    with pytest.raises(UserError, match=expected):
        sd.load("zoo:draft", quantization="bnb_4bit")
