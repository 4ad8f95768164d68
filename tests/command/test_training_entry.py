"""`specdec-train` leaves a folder that says what was trained, and goes on with nothing else."""

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from tests.support.running import CommandLine, Ended, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

SMALL = (
    *("train=medusa", "train.num_heads=2", "train.own_vocabulary_head=false", "max_steps=2"),
    *("data.max_length=16", "data.eval_samples=2", "evaluation.num_prompts=1"),
    *("evaluation.max_new_tokens=4", "trainer.per_device_train_batch_size=2"),
    *("trainer.save_steps=1", "trainer.logging_steps=1", "tree.gamma=2"),
)


@pytest.fixture
def inputs(tiny: Tiny) -> list[str]:
    """Copies, which may be changed."""
    shutil.copytree(tiny.verifier, "verifier")
    for name in ("text.txt", "held_out.txt"):
        shutil.copy(tiny.text, name)
    data = ["data.path=text.txt", "data.held_out_path=held_out.txt"]
    return [*SMALL, "verifier.path=verifier", *data]


def train(cli: CommandLine, options: Sequence[str], *more: str) -> Ended:
    return cli("train", *options, "output=out", *more)


def change_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[weights[name].numel() // 2] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_the_folder_says_what_was_trained(cli: CommandLine, inputs: list[str]) -> None:
    ended = train(cli, inputs)
    assert ended.status == 0, ended.err
    status = json.loads(Path("out/status.json").read_text())
    assert (status["kind"], status["state"]) == ("training", "complete")
    provenance = json.loads(Path("out/provenance.json").read_text())
    assert {"versions", "source", "device", "argv", "cwd", "files"} <= provenance.keys()
    assert set(provenance["files"]) == {"verifier.path", "data.path", "data.held_out_path"}
    config = OmegaConf.load("out/config.yaml")
    assert Path(config.data.path).is_absolute()
    known = json.loads(Path("out/identity.json").read_text())["told"]
    assert known["trainer.learning_rate"] == config.trainer.learning_rate
    assert known["loss"] == "cross_entropy"
    card = Path("out/README.md").read_text()
    lines = ("steps | 2", "learning_rate | 0.001", "seed | 0", "per_device_train_batch_size | 2")
    for fact in lines:
        assert f"| {fact} |" in card
    again = train(cli, inputs)
    assert (again.status, again.out) == (0, "out: complete; resume=false trains anew\n")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("loss=kl", "loss=kl (was cross_entropy)"),
        ("trainer.learning_rate=1.0e-4", "trainer.learning_rate=0.0001 (was 0.001)"),
        ("seed=3", "seed=3 (was 0)"),
        ("train.num_heads=3", "train.num_heads=3 (was 2)"),
        ("data.max_length=12", "data.max_length=12 (was 16)"),
        ("data.path=held_out.txt", "data.path=held_out.txt (was text.txt)"),  # edited below
        ("tree.gamma=1", "tree.gamma=1 (was 2)"),
        ("sampling.temperature=1", "sampling.temperature=1 (was 0.0)"),
        ("dtype=bfloat16", "dtype=bfloat16 (was float32)"),
        ("verifier.runtime=compiled", "verifier.runtime=compiled (was eager)"),
        ("joint=true", "joint=True (was False)"),
    ],
)
def test_another_option_is_named(
    cli: CommandLine, inputs: list[str], option: str, named: str
) -> None:
    assert train(cli, inputs).status == 0
    Path("held_out.txt").write_text("others " * 80)  # it would be the same data
    before = Path("out/status.json").read_bytes()
    ended = train(cli, inputs, option, "max_steps=4")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert named in ended.err
    assert Path("out/status.json").read_bytes() == before


def test_a_runtime_cannot_be_left_open(cli: CommandLine, inputs: list[str]) -> None:
    ended = train(cli, inputs, "verifier.runtime=auto")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "verifier.runtime='auto': expected eager or compiled" in ended.err
    assert not Path("out").exists()


@pytest.mark.parametrize("changed", ["text.txt", "held_out.txt", "verifier"])
def test_another_byte_is_named(cli: CommandLine, inputs: list[str], changed: str) -> None:
    assert train(cli, inputs).status == 0
    if changed == "verifier":
        change_a_weight(Path(changed))
    else:
        text = Path(changed).read_text()
        Path(changed).write_text(text[:70] + "#" + text[71:])
    ended = train(cli, inputs)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    named = {"text.txt": "data.path", "held_out.txt": "data.held_out_path"}
    assert f"{named.get(changed, 'verifier.path')} (its content is another now)" in ended.err


def test_other_spellings_are_the_same_training(cli: CommandLine, inputs: list[str]) -> None:
    assert train(cli, inputs).status == 0
    shutil.copy("text.txt", "copy.txt")
    here = str(Path.cwd())
    overrides = [
        *(f"verifier.path={here}/verifier", "data.path=copy.txt", "trainer.learning_rate=1e-3"),
        *("trainer.logging_steps=2", "trainer.weight_decay=0.10"),
    ]
    ended = train(cli, inputs, *overrides)
    assert (ended.status, ended.out) == (0, "out: complete; resume=false trains anew\n")


def test_a_training_is_repeated_from_its_folder_alone(
    cli: CommandLine, inputs: list[str], empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(cli, inputs, "loss=kl", "seed=5").status == 0
    elsewhere = empty_folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ended = cli("train", "repeat=../out", "output=again")
    assert ended.status == 0, ended.err
    expected, found = (
        load_file(path) for path in ("../out/model.safetensors", "again/model.safetensors")
    )
    assert all(found[name].equal(expected[name]) for name in expected)
    ended = cli("train", "repeat=../out", "output=../out")
    assert (ended.status, "complete" in ended.out) == (0, True), ended.err
    change_a_weight(Path("../verifier"))
    ended = cli("train", "repeat=../out", "output=third")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "verifier.path (its content is another now)" in ended.err
    ended = cli("train", "repeat=nowhere", "output=third")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "repeat='nowhere': expected the folder of a training" in ended.err


def test_constructors_and_files_agree_on_defaults() -> None:
    """What is called from Python without options is what the command line does."""
    from hydra.utils import get_class

    configs = Path(str(pytest.importorskip("specdec.configs").__path__[0]))
    config = OmegaConf.load(configs / "train.yaml")
    for node in (config.trainer, config.distill, config.evaluation, config.tuning, config.states):
        compare(node, inspect.signature(get_class(node._target_).__init__))
    for path in sorted((configs / "train").glob("*.yaml")):
        node = OmegaConf.load(path)
        compare(node, inspect.signature(get_class(node._target_).__init__))


def compare(node: Any, signature: inspect.Signature) -> None:
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    for name, parameter in signature.parameters.items():
        default = plain.get(name)
        if parameter.default is parameter.empty or (isinstance(default, str) and "${" in default):
            continue
        assert default == parameter.default, f"{plain['_target_']}: {name}"


def test_heads_are_trained_by_default_and_rates_fit_what_is_trained(tiny: Tiny) -> None:
    from specdec.command.compose import compose
    from specdec.training.medusa import MedusaTraining
    from specdec.training.trainer import Trainer

    def rates(*options: str) -> tuple[float, float]:
        with initialize_config_module("specdec.configs", version_base="1.3"):
            trainer = compose("train", options).trainer
        return trainer.learning_rate, trainer.warmup_ratio

    with initialize_config_module("specdec.configs", version_base="1.3"):
        config = compose("train", [])
    assert config.train._target_ == f"{MedusaTraining.__module__}.{MedusaTraining.__qualname__}"
    plain = Trainer()
    assert rates() == rates("train=chained") == (plain.learning_rate, plain.warmup_ratio)
    fresh = rates("train=draft_model")
    assert fresh == rates("train=lm")
    assert fresh[0] > rates()[0]
    moved = rates("train=draft_model", "train.init_path=zoo:draft")
    assert moved == rates("train=lm", f"train.init_path={tiny.draft}")
    assert moved[0] < rates()[0]
    assert rates("trainer.learning_rate=0.5", "train=lm")[0] == 0.5
