"""Weights of int8: near the model's own, told apart from it, and as good a draft."""

from importlib.util import find_spec

import pytest
import torch

import specdec as sd
from specdec.core.errors import UserError
from specdec.lm.fingerprint import differences, fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.lm.quantization import as_numbers, num_bytes, quantized
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


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"quantization='int4': expected int8, or null"):
        sd.load("zoo:draft", quantization="int4")
    monkeypatch.setattr("specdec.lm.quantization.find_spec", lambda name: None)
    expected = r"quantization='int8': needs the package torchao; pip install 'specdec-lab\[int8\]'"
    with pytest.raises(UserError, match=expected):
        sd.load("zoo:draft", quantization="int8")
