"""LoRA adapters on a verifier: merged, proven, told apart, or refused in one line."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from specdec.core.errors import UserError
from specdec.lm.adapter import EXPECTED
from specdec.lm.fingerprint import differences, fingerprint
from specdec.lm.load import load
from tests.support.families import plain_logits, tiny_model
from tests.support.running import CommandLine, Tiny

peft = pytest.importorskip("peft", reason="needs the extra `joint`")


def saved(model: Any, folder: Path, seed: int = 0) -> Path:
    """Save an adapter that changes what the model says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(
            r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False
        )
        peft.get_peft_model(model, settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = AutoModelForCausalLM.from_pretrained(str(tiny.verifier))
    return saved(model, tmp_path_factory.mktemp("adapter"))


def test_it_says_what_peft_says(tiny: Tiny, adapter: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(str(tiny.verifier)).eval()
    expected = plain_logits(peft.PeftModel.from_pretrained(base, str(adapter)), [5, 6, 7])
    lm, plain = load(str(tiny.verifier), adapter=str(adapter)), load(str(tiny.verifier))
    found = plain_logits(lm.model, [5, 6, 7])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, plain_logits(plain.model, [5, 6, 7]), atol=0.1)
    assert "weights" in differences(fingerprint(lm), fingerprint(plain))


def test_another_adapter_in_the_same_place_is_another_model(tiny: Tiny, tmp_path: Path) -> None:
    said: list[torch.Tensor] = []
    for seed in (1, 2):
        saved(AutoModelForCausalLM.from_pretrained(str(tiny.verifier)), tmp_path, seed)
        lm = load(str(tiny.verifier), adapter=str(tmp_path))
        said.append(plain_logits(lm.model, [5, 6]))
    assert not torch.allclose(said[0], said[1], atol=0.1)


def refusal(tiny: Tiny, adapter: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(str(tiny.verifier), adapter=adapter)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("folder", ["nowhere", "", 3, True])
def test_what_is_no_adapter_is_named(tiny: Tiny, folder: Any) -> None:
    assert refusal(tiny, folder) == f"adapter={folder!r}: expected {EXPECTED}"


def test_a_model_is_no_adapter(tiny: Tiny) -> None:
    assert refusal(tiny, str(tiny.draft)).endswith(EXPECTED)


def test_other_kinds_of_adapters_are_named(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "peft_type": "PREFIX_TUNING"}), encoding="utf-8")
    assert refusal(tiny, str(tmp_path)).endswith(
        "holds PREFIX_TUNING; expected LORA, which can be merged"
    )
    config.write_text("{", encoding="utf-8")
    assert "adapter_config.json is damaged" in refusal(tiny, str(tmp_path))


@pytest.mark.parametrize("overrides", [{"num_hidden_layers": 3}, {"intermediate_size": 40}])
def test_an_adapter_of_another_model_does_not_fit(
    tiny: Tiny, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    saved(tiny_model("llama", **overrides), tmp_path)
    message = refusal(tiny, str(tmp_path))
    assert message.startswith(f"path={str(tiny.verifier)!r}: the adapter ")
    assert "does not fit" in message


def test_without_peft_there_is_one_line(
    tiny: Tiny, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refusal(tiny, str(adapter)) == (
        f"adapter={str(adapter)!r}: needs the package peft; pip install 'specdec-lab[joint]'"
    )


@pytest.mark.whole
def test_a_run_with_an_adapter_is_another_run(
    cli: CommandLine, tiny: Tiny, adapter: Path, empty_folder: Path
) -> None:
    options = tiny.options("run", "prompts.limit=1")
    assert cli("decode", *options).status == 0
    assert cli("decode", *options, f"verifier.adapter={adapter}").status == 2
    adapted = tiny.options("adapted", "prompts.limit=1", f"verifier.adapter={adapter}")
    ended = cli("decode", *adapted)
    assert ended.status == 0
    assert "was trained on" not in ended.out
    shutil.copytree(tiny.verifier, "elsewhere")
    ended = cli("decode", *adapted, "verifier.path=elsewhere", "output=other")
    assert ended.status == 0, ended.err
    said = f"was trained on {str(tiny.verifier)!r}, and is merged into 'elsewhere'"
    assert f"note: verifier.adapter={adapter}: {said}" in ended.out
    first, second = (
        json.loads(Path(run, "traces.jsonl").read_text(encoding="utf-8").splitlines()[0])
        for run in ("run", "adapted")
    )
    assert first["output_ids"] != second["output_ids"]
