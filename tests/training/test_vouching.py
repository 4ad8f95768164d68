"""Whatever becomes of a training's files: nothing else is taken for what it has left."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from specdec.core.errors import UserError
from specdec.core.vouching import changed, read_note, vouch, write_note
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.load import load
from specdec.proposer.feature_proposer import load_heads
from specdec.proposer.medusa import MedusaHeads
from specdec.training.lm import LanguageModeling
from specdec.training.trained_folder import training_tokens, write_trained
from specdec.training.trainer import Trainer
from tests.support.building import Build
from tests.support.running import Tiny

STEPS = 8
BEST = 4  # the step of the best evaluation


class Scored(LanguageModeling):
    """Evaluations whose best is known."""

    def evaluate(self, module: Any) -> dict[str, float]:
        step = self.at
        return {**super().evaluate(module), "eval_known": 10.0 - abs(step - BEST)}

    def loss(self, module: Any, batch: Any) -> Any:
        if module.training:
            self.at = batch.step + 1
        return super().loss(module, batch)

    def score(self, evaluation: dict[str, float]) -> float:
        return evaluation["eval_known"]


def trainer(**options: Any) -> Trainer:
    small: dict[str, Any] = {
        "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "warmup_steps": 2, "logging_steps": 1, "eval_steps": 2, "save_steps": 2,
        "eval_on_start": False,
    }  # fmt: skip
    return Trainer(**(small | options))


def interrupted(build: Build, output: Path, step: int, **options: Any) -> None:
    """Train as far as a step, as if killed behind its checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        original = Scored.loss

        def loss(self: Scored, module: Any, batch: Any) -> Any:
            if module.training and batch.step == step:
                raise KeyboardInterrupt
            return original(self, module, batch)

        patch.setattr(Scored, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            trainer(**options).fit(build(Scored), output)


def same(one: Path, other: Path) -> bool:
    found, expected = (load_file(each / "model.safetensors") for each in (one, other))
    return all(found[name].equal(expected[name]) for name in expected)


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (4, "saved again"),
        (2, "the best after step 8 takes its place"),
    ],
)
@pytest.mark.parametrize("damage", ["a bit", "deleted", "of another step"])
def test_the_best_weights_are_those_of_the_best_evaluation(
    build: Build,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    limit: int,
    words: str,
    damage: str,
) -> None:
    """They are made again where a checkpoint leads there; elsewhere it is told what takes over."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    trainer(max_steps=10).fit(build(Scored), whole)
    options = {"max_steps": 10, "save_total_limit": limit}
    interrupted(build, output, 8, **options)
    best = output / "best"
    if damage == "a bit":
        flip(best / "model.safetensors")
    elif damage == "deleted":
        (best / "training.json").unlink()
    else:
        note = read_note(best / "training.json") or {}
        write_note(best / "training.json", {**note, "steps": 2})
    capsys.readouterr()
    trainer(**options).fit(build(Scored), output)
    assert f"{best}: not as it was saved at step {BEST}; {words}" in capsys.readouterr().out
    assert same(output, whole)
    assert same(best, whole / "best") == (limit == 4)
    expected = BEST if limit == 4 else 10
    assert json.loads((best / "training.json").read_text())["steps"] == expected


def test_a_best_of_a_step_that_is_trained_again_is_not_believed(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way may be another one by then; where it is the same, the same weights are the best."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    trainer(save_steps=3).fit(build(Scored), whole)
    interrupted(build, output, 5, save_steps=3)
    trainer(save_steps=3).fit(build(Scored), output)
    assert f"of step {BEST}, which is trained again" in capsys.readouterr().out
    assert same(output / "best", whole / "best")


@pytest.mark.parametrize("damage", ["deleted", "a bit", "cut"])
def test_the_log_is_that_of_the_checkpoint(build: Build, tmp_path: Path, damage: str) -> None:
    """No score is read from a file that nothing vouches for."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    trainer().fit(build(Scored), whole)
    interrupted(build, output, 6)
    log = output / "metrics.jsonl"
    if damage == "deleted":
        log.unlink()
    elif damage == "a bit":
        log.write_text(log.read_text().replace("eval_known", "eval_knowm"))
    else:
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    trainer().fit(build(Scored), output)
    assert logged(output) == logged(whole)
    assert same(output / "best", whole / "best")


def logged(output: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in row.items() if name != "tokens_per_second"} for row in rows]


def test_checkpoints_that_were_swapped_are_named(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is whole, under the name of the other: a run would go on at the wrong step."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    trainer().fit(build(Scored), whole)
    interrupted(build, output, 6, save_total_limit=3)
    four, six = (output / "checkpoints" / f"step-{step}" for step in (4, 6))
    four.rename(six.with_name("aside"))
    six.rename(four)
    six.with_name("aside").rename(six)
    trainer().fit(build(Scored), output)
    printed = capsys.readouterr().out
    assert f"{six}: damaged (it is of step 4)" in printed
    assert f"{four}: damaged (it is of step 6)" in printed
    assert "going on from step 2" in printed
    assert same(output, whole)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "training.json"])
@pytest.mark.parametrize("damage", ["a bit", "another's", "gone"])
def test_weights_that_a_training_did_not_leave_are_refused(
    tiny: Tiny, tmp_path: Path, name: str, damage: str
) -> None:
    verifier = load(str(tiny.verifier))
    for folder, num_heads in (("mine", 1), ("other", 2)):
        heads = MedusaHeads(verifier.state_size, verifier.vocab_size, num_heads)
        heads.save_pretrained(tmp_path / folder)
        write_trained(tmp_path / folder, steps=num_heads, tokens=10 * num_heads)
    mine = tmp_path / "mine"
    there = Checkpoint(str(mine), field="proposer.path")
    assert load_heads(MedusaHeads, there).num_heads == 1
    assert training_tokens(mine) == 10
    if damage == "a bit":
        flip(mine / name)
    elif damage == "another's":
        shutil.copy(tmp_path / "other" / name, mine / name)
    else:
        (mine / name).unlink()
    assert training_tokens(mine) is None
    if (damage, name) == ("gone", "training.json"):
        return  # nothing says that they were trained
    with pytest.raises(UserError) as caught:
        load_heads(MedusaHeads, there)
    message = str(caught.value)
    assert message.startswith(f"proposer.path={str(mine)!r}: ")
    assert ".safetensors" in message or ".json" in message
    assert "\n" not in message


def test_a_model_that_a_training_did_not_leave_is_refused(build: Build, tmp_path: Path) -> None:
    trainer(max_steps=2).fit(build(), tmp_path / "out")
    load(str(tmp_path / "out"))
    flip(tmp_path / "out" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is not as it was written; expected"):
        load(str(tmp_path / "out"))


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "\u00e4"], "b": {"c": True}}, {}])
def test_a_note_is_what_was_written_or_none(tmp_path: Path, value: dict[str, Any]) -> None:
    file = tmp_path / "note.json"
    write_note(file, value)
    assert read_note(file) == value
    content = file.read_bytes()
    for length in range(len(content) - 2):
        file.write_bytes(content[:length])
        assert read_note(file) is None
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        found = read_note(file)
        assert found is None or {name: found.get(name) for name in value} == value
    file.unlink()
    assert read_note(file) is None


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    listed = vouch(tmp_path, ["a", "b", "c", "d"])
    assert changed(tmp_path, listed) == []
    (tmp_path / "a").unlink()
    (tmp_path / "c").write_text("d")
    assert changed(tmp_path, listed) == ["a is missing", "c is not as it was written"]
