"""From a folder to a model, or to one line that says what is wrong with the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.checkpoint import EXPECTED
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.lm.vocabularies import num_conflicts, require_shared_vocabulary
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.families import noisy_copy, plain_logits, tiny_model
from tests.support.ragged import EXACT, difference
from tests.support.running import Tiny


def complaint(path: Any, **options: Any) -> str:
    """Return the one line with which a load is refused."""
    with pytest.raises(UserError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message, f"more than one line:\n{message}"
    return message


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the verifier's folder, to be spoilt."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny.verifier, copy)
    return copy


# --- what works ---------------------------------------------------------------------------------


def test_a_folder_is_loaded(tiny: Tiny) -> None:
    lm = load(str(tiny.verifier))
    stock = AutoModelForCausalLM.from_pretrained(tiny.verifier, dtype=torch.float32).eval()
    text = lm.encode("def add(first, second):")
    assert lm.decode(text) == "def add(first, second):"
    assert lm.end_ids == {stock.config.eos_token_id}
    assert (lm.vocab_size, lm.max_length, lm.attention) == (300, 256, "sdpa")
    assert (lm.device, lm.model.dtype, lm.model.training) == (
        torch.device("cpu"), torch.float32, False,
    )  # fmt: skip
    lm.prefill([0], [text[:-1]])
    logits = lm.forward([0], torch.tensor([text[-1:]])).logits[0, 0]
    assert difference(logits, plain_logits(stock, text)[-1]) < EXACT


def test_weights_are_shared_and_caches_are_not(tiny: Tiny) -> None:
    first, second = load(str(tiny.verifier)), load(str(tiny.verifier))
    assert first.model is second.model
    first.prefill([0], [[3, 4, 5]])
    assert (first.length(0), second.length(0)) == (3, 0)


def test_weights_are_shared_between_a_verifier_and_a_draft(tiny: Tiny) -> None:
    """A model that drafts for itself would take twice the memory, and be proven twice."""
    verifier = load(str(tiny.verifier))
    draft = load(str(tiny.verifier), field="draft.path", vocabulary_of=str(tiny.verifier))
    assert verifier.model is draft.model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tiny: Tiny, dtype: str) -> None:
    lm = load(str(tiny.verifier), dtype=dtype)
    assert lm.model.dtype == getattr(torch, dtype)
    assert lm.model is not load(str(tiny.verifier)).model


def test_attention_can_be_chosen(tiny: Tiny) -> None:
    assert load(str(tiny.verifier), attention="eager").attention == "eager"


def test_families_without_sdpa_fall_back_to_eager(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which these are, changes from one transformers to the next."""
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", False)
    tiny_model("gemma2", vocab_size=300).save_pretrained(folder)
    assert load(str(folder)).attention == "eager"


def test_a_draft_may_have_more_logits_than_the_verifier(tiny: Tiny) -> None:
    """Padded vocabularies of a family differ; the tokenizer is what must be the same."""
    lm = load(str(tiny.padded), vocabulary_of=str(tiny.verifier), field="draft.path")
    assert lm.vocab_size == 320


# --- what does not ------------------------------------------------------------------------------


def test_another_vocabulary_is_refused(tiny: Tiny) -> None:
    message = complaint(str(tiny.stranger), vocabulary_of=str(tiny.verifier), field="draft.path")
    assert message.startswith(f"draft.path={str(tiny.stranger)!r}: its vocabulary of ")
    assert f"verifier.path={str(tiny.verifier)!r}" in message
    assert "must share the verifier's tokenizer" in message


def test_vocabularies_are_compared_token_for_token(tiny: Tiny, folder: Path) -> None:
    """Two tokens have changed places: the size is the same, and so are the tokens."""
    tokenizer = folder / "tokenizer.json"
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer.write_text(json.dumps(content), encoding="utf-8")
    message = complaint(str(folder), vocabulary_of=str(tiny.verifier), field="draft.path")
    assert "(2 entries differ)" in message or "(4 entries differ)" in message, message


@pytest.mark.parametrize("path", ["", None, 3])
def test_a_path_that_is_none(path: object) -> None:
    assert complaint(path) == f"path={path!r}: expected {EXPECTED}"


@pytest.mark.parametrize("name", ["nowhere", "no/where/at/all"])
def test_an_unknown_folder(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    assert complaint(path, field="draft.path").startswith(
        f"draft.path={path!r}: not loaded; expected"
    )


@pytest.mark.parametrize("dtype", ["float8", "fp16", "", "torch.float32", None])
def test_an_unknown_dtype(tiny: Tiny, dtype: object) -> None:
    expected = f"dtype={dtype!r}: expected one of float32, bfloat16, float16, auto"
    assert complaint(str(tiny.verifier), dtype=dtype) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there(tiny: Tiny, device: str) -> None:
    assert complaint(str(tiny.verifier), device=device) == (
        f"device={device!r}: no GPU is available here; use device=cpu"
    )


@pytest.mark.parametrize("device", ["gpu", "", "cuda0", None, "cpu:x"])
def test_an_unknown_device(tiny: Tiny, device: object) -> None:
    assert complaint(str(tiny.verifier), device=device).startswith(f"device={device!r}: expected")


def test_an_unknown_attention(tiny: Tiny) -> None:
    message = complaint(str(tiny.verifier), attention="fast")
    assert message.startswith("attention='fast': expected one of sdpa, eager")


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def config_of_nothing(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no_such_type"}')


def config_of_another_kind(folder: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(folder)


def encoder_decoder(folder: Path) -> None:
    AutoConfig.for_model("whisper").save_pretrained(folder)
    without_weights(folder)


def recurrent(folder: Path) -> None:
    AutoConfig.for_model("mamba").save_pretrained(folder)
    without_weights(folder)


def biased(folder: Path) -> None:
    tiny_model("falcon", alibi=True, vocab_size=300).save_pretrained(folder)


def truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def weights_of_another_shape(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.intermediate_size = 64
    config.save_pretrained(folder)


def missing_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil",
    [
        without_tokenizer,
        without_weights,
        without_config,
        broken_config,
        config_of_nothing,
        config_of_another_kind,
        encoder_decoder,
        recurrent,
        biased,
        truncated_weights,
        weights_of_another_shape,
        missing_weight,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_folder_with_something_wrong_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    message = complaint(str(folder), field="draft.path")
    assert message.startswith(f"draft.path={str(folder)!r}") or "cannot be rewound" in message


def test_end_ids_come_from_the_generation_configuration_then_from_the_tokenizer(tiny: Tiny) -> None:
    lm = load(str(tiny.verifier))
    model = noisy_copy(lm.model, amount=0)
    model.generation_config.eos_token_id = [3, 7]
    assert HFCausalLM(model, lm.tokenizer).end_ids == {3, 7}
    model.generation_config.eos_token_id = 5
    assert HFCausalLM(model, lm.tokenizer).end_ids == {5}
    model.generation_config.eos_token_id = None
    tokenizer: Any = lm.tokenizer
    assert HFCausalLM(model, tokenizer).end_ids == {tokenizer.eos_token_id}
    assert HFCausalLM(model).end_ids == frozenset()


@pytest.mark.parametrize(
    ("ours", "theirs", "conflicts"),
    [
        ("abc", "abc", 0),
        ("abcd", "abc", 0),  # more at the end of one
        ("abc", "abcde", 0),
        ("abdc", "abcd", 4),
        ("xbc", "abc", 2),
        ("xbcd", "abc", 2),
        ("ab-d", "abcd", 1),  # a hole before the end
        ("ab-d", "abc", 1),
    ],
)
def test_only_what_both_have_must_agree(ours: str, theirs: str, conflicts: int) -> None:
    first, second = (
        {token: number for number, token in enumerate(each) if token != "-"}
        for each in (ours, theirs)
    )
    assert num_conflicts(first, second) == num_conflicts(second, first) == conflicts


def test_a_draft_with_more_tokens_at_the_end_is_loaded_and_drafts(
    tiny: Tiny, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.draft))
    tokenizer.add_tokens(["<|fim|>"], special_tokens=True)
    model: Any = AutoModelForCausalLM.from_pretrained(str(tiny.draft))
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    verifier = load(str(tiny.verifier))
    for ours, other in ((tmp_path, tiny.verifier), (tiny.verifier, tmp_path)):
        assert load(ours, field="draft.path", vocabulary_of=str(other)).vocab_size > 0
    draft = load(tmp_path)
    require_shared_vocabulary(verifier, draft, "draft.path")
    require_shared_vocabulary(draft, verifier, "verifier.path")
    decoder = SpeculativeDecoder(
        verifier, DraftModel(draft, Chain(3)), Rejection(), Sampling(0), Stopping(8)
    )
    alone = SpeculativeDecoder(verifier, NoProposer(), Rejection(), Sampling(0), Stopping(8))
    request = Request("a", [5, 6, 7])
    (found,), (expected,) = decoder.decode([request]), alone.decode([request])
    assert found.output_ids == expected.output_ids
    assert sum(step.drafted for step in found.steps) > 0
