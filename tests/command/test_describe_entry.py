"""`specdec-describe`: what it prints and writes of a model, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import specdec as sd
from specdec.command.tree_fits import Fit, Fits
from tests.support.complaints import assert_one_line
from tests.support.families import FAMILIES, RECURRENT, SMALL, WINDOW
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

ALL_TREES = "best_first, chain, dynamic, filtered, paths, sampled, sparse"
LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


def write_config(family: str, **options: Any) -> str:
    """Write a folder with a `config.json`, and nothing else."""
    AutoConfig.for_model(family, **options).save_pretrained(family)
    assert [path.name for path in Path(family).iterdir()] == ["config.json"]
    return family


def said(shown: str, name: str) -> list[str]:
    """Return what stands beside a name, and below that."""
    lines = shown.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"{name}  "))
    own = [lines[first].removeprefix(name).strip()]
    for line in lines[first + 1 :]:
        if not line.startswith("  "):
            break
        own.append(line.strip())
    return own


@pytest.fixture
def without_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out which proposers fit: all of them, and all trees, take seconds."""
    monkeypatch.setattr(
        "specdec.command.describe.fits_of", lambda config: Fits({"none": Fit()}, {})
    )


def described(cli: CommandLine, *options: str) -> str:
    ended = cli("describe", *options)
    assert ended.status == 0, ended.err
    return ended.out


def both(cli: CommandLine, *options: str) -> tuple[str, dict[str, Any]]:
    """Return what is shown, and the numbers."""
    shown = described(cli, *options, "output=new/numbers.json")
    return shown, json.loads(Path("new/numbers.json").read_text())


def numbers(cli: CommandLine, *options: str) -> dict[str, Any]:
    return both(cli, *options)[1]


@pytest.mark.usefixtures("without_fits")
def test_a_large_model_is_described_by_its_configuration_alone(cli: CommandLine) -> None:
    path = write_config("llama", **LARGE)
    options = [f"verifier.path={path}", "context=4096", "batch=8", "dtype=float16"]
    shown = described(cli, *options, "memory=256GiB")
    assert said(shown, "model") == ["llama: llama, 80 layers, float16"]
    assert said(shown, "weights")[0].startswith("78,371,889,152 parameters, 146 GiB")
    assert said(shown, "attention") == ["multi-head 64:64 (heads of queries : of keys and values)"]
    assert said(shown, "cache") == [
        "2.5 MiB a token (32 KiB in each of 80 layers)",
        "10 GiB a request of 4096 tokens",
        "80 GiB for batch=8",
    ]
    room = "room for 11 requests of 4096 tokens beside the weights"
    assert said(shown, "memory") == [f"256 GiB: {room}; batch=8 fits"]
    shown = described(cli, *options, "memory=80GiB")
    assert said(shown, "memory") == ["80 GiB: the weights alone do not fit"]
    shown = described(cli, *options, "memory=160GiB")
    assert "room for 1 requests" in said(shown, "memory")[0]
    assert "batch=8 does not fit" in said(shown, "memory")[0]


@pytest.mark.usefixtures("without_fits")
def test_fewer_key_heads_take_less(cli: CommandLine) -> None:
    path = write_config("llama", **{**LARGE, "num_key_value_heads": 8})
    found = numbers(cli, f"verifier.path={path}", "dtype=float16", "context=100", "batch=3")
    assert found["cell_bytes"] == 320 * 1024
    assert found["request_bytes"] == 100 * found["cell_bytes"]
    assert found["cache_bytes"] == 3 * found["request_bytes"]
    assert found["traits"]["attention"] == "grouped-query"


@pytest.mark.usefixtures("without_fits")
def test_the_numbers_are_those_of_the_loaded_model(cli: CommandLine, tiny: Tiny) -> None:
    found = numbers(cli, f"verifier.path={tiny.verifier}", "memory=1GiB")
    lm = sd.load(tiny.verifier)
    lm.prefill([0], [[0]])
    assert found["weights"]["num_bytes"] == sum(each.nbytes for each in lm.model.parameters())
    assert found["cell_bytes"] == sum(lm.cell_bytes)
    assert found["context"] == found["max_length"] == lm.max_length
    room = 2**30 - found["weight_bytes"]
    assert found["most_requests"] == room // (lm.max_length * sum(lm.cell_bytes))


@pytest.mark.usefixtures("without_fits")
def test_what_a_window_has_passed_is_said(cli: CommandLine) -> None:
    path = write_config("gemma3_text", **{**SMALL, **FAMILIES["gemma3_text"]})
    shown, found = both(cli, f"verifier.path={path}", "context=100")
    window = f"sliding_attention of {WINDOW} tokens in 1 of 2: layer 0"
    assert said(shown, "attention")[1] == window
    cell = found["cell_bytes"] // 2
    assert found["stock_bytes"] == cell * (100 + WINDOW - 1)
    assert found["request_bytes"] == cell * 200
    assert any("transformers' own cache keeps" in line for line in said(shown, "cache"))


@pytest.mark.usefixtures("without_fits")
def test_experts_are_counted(cli: CommandLine) -> None:
    path = write_config("mixtral", **{**SMALL, **FAMILIES["mixtral"]})
    shown = described(cli, f"verifier.path={path}")
    assert said(shown, "experts") == ["4, of which a token takes 2, in layers 0 to 1"]


@pytest.mark.parametrize(
    ("family", "options", "reason", "cache"),
    [
        (
            "gpt_neo",
            {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
            "layers of kind local",
            "of transformers' own cache: ours does not hold its layers",
        ),
    ],
)
def test_what_is_not_decoded_with_is_described_and_said(
    cli: CommandLine, family: str, options: dict[str, Any], reason: str, cache: str
) -> None:
    path = write_config(family, **{**SMALL, **options})
    shown = described(cli, f"verifier.path={path}", "context=64")
    assert reason in said(shown, "decoding")[0]
    assert "parameters" in said(shown, "weights")[0]
    assert any(cache in line for line in said(shown, "cache"))
    assert "proposers" not in shown


def test_states_of_recurrent_layers_are_said(cli: CommandLine) -> None:
    path = write_config("mamba2", **{**SMALL, **RECURRENT["mamba2"]})
    shown, found = both(cli, f"verifier.path={path}", "context=64")
    assert found["cell_bytes"] == 0
    assert found["request_bytes"] == found["state_bytes"] > 0
    assert any("of states a request" in line for line in said(shown, "cache"))
    assert said(shown, "attention")[0] == "none"
    against = next(line for line in said(shown, "draft_model") if line.startswith("not "))
    assert "cannot read trees" in against
    assert "sparse" in against.split(":")[0]
    assert "window" not in shown, "there is none, and states do not go"


def test_an_encoder_decoder_is_counted(cli: CommandLine) -> None:
    path = write_config("t5", **{**SMALL, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4})
    fits, found = both(cli, f"verifier.path={path}", "context=64", "draft.path=zoo:draft")
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(path))
    assert found["weights"]["num_parameters"] == sum(each.numel() for each in model.parameters())
    assert found["traits"]["positions"] == "relative, 32 buckets"
    assert found["cell_bytes"] == found["traits"]["num_layers"] * 2 * 32 * 4
    assert said(fits, "draft_model")[0].startswith("does not fit: draft.path='zoo:draft'")


# --- What fits ---


def test_the_code_that_refuses_arms_says_what_fits(cli: CommandLine) -> None:
    shown = described(cli)
    assert said(shown, "draft_model")[0] == ALL_TREES
    assert said(shown, "ngram") == [
        "chain",
        "not best_first, dynamic, filtered, paths, sampled, sparse: proposer=ngram copies one text"
        " and knows no probabilities; expected tree=chain",
    ]
    assert said(shown, "none") == ["one token a step, no tree"]
    lacking = "calibrated, sequoia: tree.path=None: expected a file of specdec-calibrate"
    assert said(shown, "(without)") == [lacking]
    assert "draft.path=MODEL is held against it" in said(shown, "draft_model")[1]


def test_a_draft_and_heads_are_held_against_the_model(cli: CommandLine, tiny: Tiny) -> None:
    verifier = f"verifier.path={tiny.verifier}"
    fits = described(cli, verifier, f"draft.path={tiny.draft}")
    assert said(fits, "draft_model") == [ALL_TREES]
    strange = described(cli, verifier, f"draft.path={tiny.stranger}", "proposer.path=zoo:medusa")
    assert "its vocabulary of" in said(strange, "draft_model")[0]
    assert said(strange, "medusa")[0].startswith("does not fit: proposer.path='zoo:medusa': heads")
    own = described(cli, "proposer.path=zoo:medusa")
    assert said(own, "medusa") == [ALL_TREES]
    assert "use proposer=medusa" in said(own, "chained")[1]


def test_ranks_beyond_the_vocabulary_do_not_fit(cli: CommandLine) -> None:
    path = write_config("llama", **{**SMALL, "vocab_size": 3})
    found = numbers(cli, f"verifier.path={path}")["fits"]["proposers"]["draft_model"]
    assert "sparse" not in found["trees"]
    assert found["reasons"] == {
        "tree: rank 4, but there are 3 tokens in draft.path='llama'": ["sparse"]
    }


# --- Masks, and the door for Python ---


@pytest.mark.usefixtures("without_fits")
def test_masks_are_drawn(cli: CommandLine) -> None:
    """Causal, and of a prefix LM: the prompt's first token sees its second."""
    shown = described(cli)
    lines = shown.splitlines()
    first = next(line for line in lines if line.startswith("A  "))
    assert first.split() == ["A", "x", ".", "|", ".", ".", ".", "A", "x", "x", "|", ".", ".", "."]
    assert "E   x x | x x x      E   x x | x x x" in shown


@pytest.mark.usefixtures("without_fits")
def test_python_says_the_same(cli: CommandLine) -> None:
    found = sd.describe("zoo:verifier", context=100, batch=2, dtype="bfloat16", memory="1GiB")
    shown, written = both(cli, "context=100", "batch=2", "dtype=bfloat16", "memory=1GiB")
    assert shown.startswith(f"{found}\n")
    del written["fits"]
    assert written == json.loads(json.dumps(found.numbers()))


def test_numbers_change_with_what_they_are_of() -> None:
    narrow, wide = (sd.describe("zoo:verifier", dtype=each) for each in ("float16", "float32"))
    assert wide.cell_bytes == 2 * (narrow.cell_bytes or 0)
    assert wide.weights.num_bytes == 2 * narrow.weights.num_bytes
    assert narrow.refused is None


# --- Bad input ---


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["verifier.path=./nowhere"], ["verifier.path='./nowhere'"]),
        (["context=0"], ["context=0"]),
        (["context=1025"], ["context=1025", "at most 1024"]),
        (["batch=0"], ["batch=0"]),
        (["dtype=int4"], ["dtype='int4'"]),
        (["memory=much"], ["memory='much'", "1MiB"]),
        (["device=tpu"], ["device='tpu'"]),
        (["output=."], ["output='.'"]),
        (["draft.path=3"], ["draft.path=3"]),
        (["proposer.path=''"], ["proposer.path=''"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options_are_refused(cli: CommandLine, options: list[str], names: list[str]) -> None:
    assert_one_line(cli("describe", *options), names)


def test_a_model_without_a_limit_wants_a_context(cli: CommandLine) -> None:
    config: Any = AutoConfig.for_model("mamba2", **{**SMALL, **RECURRENT["mamba2"]})
    del config.max_position_embeddings
    config.save_pretrained("mamba2")
    assert_one_line(cli("describe", "verifier.path=mamba2"), ["context=None", "context=4096"])


def test_a_limit_in_bytes_is_refused_before_weights_are_read(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache.max_bytes` is looked at with cells of the configuration."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("specdec.lm.load.from_checkpoint", refuse)
    options = tiny.options("run", "cache=sliding_window", "cache.max_bytes=300")
    assert_one_line(
        cli("decode", *options), ["cache.max_bytes=300", "room for 2 cells of 256 bytes"]
    )


def test_models_of_no_family_are_refused(cli: CommandLine) -> None:
    config = AutoConfig.for_model("vit", hidden_size=32)
    config.save_pretrained("vit")
    assert_one_line(cli("describe", "verifier.path=vit", "context=5"), ["vit"])
