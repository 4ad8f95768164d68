"""Heads that Python trains: the weights of the command, resumed, and never mixed up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import specdec
from tests.support.running import CommandLine, Tiny

sd: Any = specdec
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def verifier(tiny: Tiny) -> Any:
    return sd.load(tiny.verifier)


def states(verifier: Any, tiny: Tiny, **more: Any) -> Any:
    shared = {"max_length": 32, "eval_samples": 2}
    return sd.VerifierStates(verifier, str(tiny.text), str(tiny.text), **shared, **more)


def trainer(**more: Any) -> Any:
    return sd.Trainer(max_steps=4, per_device_train_batch_size=2, logging_steps=2, **more)


def trained(verifier: Any, tiny: Tiny, output: Path, **more: Any) -> Any:
    given: dict[str, Any] = {"trainer": trainer(), "num_heads": 2} | more
    read = states(verifier, tiny, seed=getattr(given["trainer"], "seed", 0))
    return sd.train_heads(verifier, read, output, **given)


@pytest.mark.whole
@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("kind", ["medusa", "chained"])
def test_weights_are_those_of_the_command(
    verifier: Any, cli: CommandLine, tiny: Tiny, empty_folder: Path, kind: str
) -> None:
    options = (
        *(f"train={kind}", "loss=kl", f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"),
        *(f"data.held_out_path={tiny.text}", "data.max_length=32", "data.eval_samples=2"),
        *("train.num_heads=2", "max_steps=4", "trainer.per_device_train_batch_size=2"),
        *("tree.gamma=2", "output=by_command"),
    )
    ended = cli("train", *options)
    assert ended.status == 0, ended.err
    training = {"medusa": sd.MedusaTraining, "chained": sd.ChainedTraining}[kind]
    found = trained(verifier, tiny, empty_folder / "here", loss=sd.KL(), training=training)
    theirs, ours = (load_file(each / WEIGHTS) for each in (Path("by_command"), found.path))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.whole
@pytest.mark.usefixtures("fresh_accelerator")
def test_it_is_trained_once_and_decodes(verifier: Any, tiny: Tiny, tmp_path: Path) -> None:
    found = trained(verifier, tiny, tmp_path / "heads")
    written = (found.path / WEIGHTS).stat().st_mtime_ns
    assert found.steps == 4
    table = found.table()
    assert list(table.index) == [0, 2, 4]
    assert table.loc[4, "eval_block_efficiency"] >= 1
    again = trained(verifier, tiny, tmp_path / "heads")
    assert (again.path / WEIGHTS).stat().st_mtime_ns == written
    proposer = found.load(verifier, sd.Chain(2))
    (trace,) = sd.generate(verifier, proposer, ["def add("], max_new_tokens=6)
    assert len(trace.output_ids) <= 6


@pytest.mark.whole
@pytest.mark.usefixtures("fresh_accelerator")
def test_a_longer_training_resumes_and_another_one_is_refused(
    verifier: Any, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(verifier, tiny, tmp_path / "heads")
    longer = sd.Trainer(max_steps=6, per_device_train_batch_size=2, logging_steps=2)
    assert trained(verifier, tiny, tmp_path / "heads", trainer=longer).steps == 6
    assert "from step 4" in capsys.readouterr().out
    tree = sd.HeldOut(sd.Chain(1), sd.Sampling(0.0))
    others: dict[str, dict[str, Any]] = {
        "loss.class": {"loss": sd.KL()},
        "train.num_heads": {"num_heads": 3},
        "train.kind.class": {"training": sd.ChainedTraining},
        "trainer.seed": {"trainer": trainer(seed=1)},
        "evaluation.tree.nodes": {"acceptance": tree},
    }
    for name, changed in others.items():
        with pytest.raises(sd.UserError, match=f"training with other options: .*{name}"):
            trained(verifier, tiny, tmp_path / "heads", **changed)


@pytest.mark.whole
@pytest.mark.usefixtures("fresh_accelerator")
def test_data_are_known_by_their_content(verifier: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("def add(first, second):\n    return first + second\n" * 40)
    given: dict[str, Any] = {"held_out": data, "trainer": trainer(), "num_heads": 1}
    sd.train_heads(verifier, data, tmp_path / "heads", **given)
    data.write_text("print(1)\n" * 90)
    with pytest.raises(sd.UserError, match="its content is another now"):
        sd.train_heads(verifier, data, tmp_path / "heads", **given)


@pytest.mark.whole
@pytest.mark.usefixtures("fresh_accelerator")
def test_another_seed_trains_other_weights(verifier: Any, tiny: Tiny, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("".join(f"def add{n}(x):\n    return x + {n}\n" for n in range(200)))
    given: dict[str, Any] = {"held_out": tiny.text, "num_heads": 1}
    found = [
        sd.train_heads(verifier, data, tmp_path / f"{seed}", trainer=each, **given)
        for seed, each in enumerate((trainer(), trainer(seed=1)))
    ]
    ours, theirs = (load_file(each.path / WEIGHTS) for each in found)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(sd.UserError, match=r"trainer.seed=1: expected 0"):
        sd.train_heads(verifier, states(verifier, tiny), tmp_path / "2", trainer=trainer(seed=1))


def test_what_is_wrong_is_said_at_once(verifier: Any, tiny: Tiny, tmp_path: Path) -> None:
    for given, said in (
        ({"num_heads": 0}, "num_heads"),
        ({"num_layer": 2}, "num_layer"),
        ({"decay": 2.0}, "decay"),
        ({"trainer": 3}, "trainer=3"),
        ({"loss": sd.KL}, "loss="),
        ({"loss": torch.nn.CrossEntropyLoss()}, "loss="),
        ({"training": sd.Medusa}, "training="),
        ({"acceptance": sd.Chain(2)}, "acceptance="),
    ):
        with pytest.raises(sd.UserError, match=said):
            trained(verifier, tiny, tmp_path / "heads", **given)
    read = states(verifier, tiny)
    with pytest.raises(sd.UserError, match="held_out"):
        sd.train_heads(verifier, read, tmp_path / "heads", held_out=tiny.text)
    with pytest.raises(sd.UserError, match="another verifier"):
        sd.train_heads(sd.load(tiny.draft), read, tmp_path / "heads")
    assert not (tmp_path / "heads").exists()
