"""A training goes on where it was, as itself alone; signals and time limits lose nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import get_scheduler

from specdec.core.errors import UserError
from specdec.core.signals import Terminated
from specdec.results.session import read_status
from specdec.training.lm import LanguageModeling
from specdec.training.objective import Batch
from specdec.training.schedule import SCHEDULES
from specdec.training.trainer import FREE, Trainer
from tests.support.building import Build

STEPS = 6


def trainer(**options: Any) -> Trainer:
    small: dict[str, Any] = {
        "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "warmup_steps": 2, "logging_steps": 1, "eval_steps": 3, "save_steps": 3,
    }  # fmt: skip
    return Trainer(**(small | options))


def same(one: Path, other: Path) -> bool:
    found, expected = (load_file(each / "model.safetensors") for each in (one, other))
    return all(found[name].equal(expected[name]) for name in expected)


def logged(output: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: v for name, v in row.items() if name != "tokens_per_second"} for row in rows]
    return sorted(rows, key=lambda row: (row["step"], "loss" not in row))


class Asking(LanguageModeling):
    """Somebody asks the process to end while the loss of some step is computed."""

    asks: dict[int, list[signal.Signals]]

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        for number in self.asks.get(batch.step, ()) if module.training else ():
            os.kill(os.getpid(), number)
        return super().loss(module, batch)


def asking(build: Build, asks: dict[int, list[signal.Signals]]) -> Any:
    made = build(Asking)
    made.asks = asks
    return made


@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Terminated),
        (signal.SIGUSR1, Terminated),
    ],
)
def test_asked_to_end_it_finishes_the_step_and_saves(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: Any, ending: Any
) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(ending):
        trainer(eval_steps=5).fit(asking(build, {3: [number]}), output)
    assert "interrupted at step 5 of 6; the same command goes on from step 5" in (
        capsys.readouterr().out
    )
    status = read_status(output)
    assert status is not None
    assert status["state"] == "interrupted"
    trainer(eval_steps=5).fit(build(), output)
    assert "going on from step 5" in capsys.readouterr().out
    trainer(eval_steps=5).fit(build(), whole)
    assert same(output, whole)
    assert logged(output) == logged(whole), "the log tells of the interruption"


def test_who_asks_twice_does_not_wait(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(asking(build, {4: [signal.SIGINT, signal.SIGINT]}), tmp_path / "out")
    assert "interrupted at step 4 of 6; the same command goes on from step 3" in (
        capsys.readouterr().out
    )


def test_a_session_may_be_limited(build: Build, tmp_path: Path) -> None:
    """Each of these has time for a step; together they are one training."""
    output, whole = tmp_path / "out", tmp_path / "whole"
    sessions = 0
    while not (output / "training.json").exists():
        sessions += 1
        try:
            trainer(max_hours=1e-12).fit(build(), output)
        except Terminated:
            continue
    assert sessions == STEPS + 1
    trainer().fit(build(), whole)
    assert same(output, whole)
    assert logged(output) == logged(whole)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 3e-3),
        ("per_device_train_batch_size", 3),
        ("gradient_accumulation_steps", 2),
        ("lr_scheduler_type", "linear"),
        ("warmup_steps", 1),
        ("weight_decay", 0.0),
        ("adam_beta2", 0.9),
        ("max_grad_norm", 2.0),
        ("seed", 4),
    ],
)
def test_what_decides_on_the_weights_may_not_change(
    build: Build, tmp_path: Path, option: str, value: object
) -> None:
    output = tmp_path / "out"
    trainer(max_steps=1, save_steps=1).fit(build(), output)
    with pytest.raises(UserError, match=rf"trainer\.{option}={value} \(was .*resume=false"):
        trainer(**{option: value}).fit(build(), output)
    checkpoint = str(output / "checkpoints" / "step-1")
    other = trainer(**{option: value, "resume_from_checkpoint": checkpoint})
    with pytest.raises(UserError, match=rf"resume_from_checkpoint=.*trainer\.{option}={value}"):
        other.fit(build(), tmp_path / "other")


def test_how_long_and_how_often_may_change(build: Build, tmp_path: Path) -> None:
    output = tmp_path / "out"
    trainer(max_steps=2).fit(build(), output)
    changed: dict[str, Any] = {
        "max_steps": 5, "logging_steps": 2, "eval_steps": 5, "save_steps": 4,
        "save_total_limit": 1, "save_best": False, "max_hours": 2.0, "group": "others",
        "eval_on_start": False,
    }  # fmt: skip
    assert set(changed) | {"num_train_epochs", "resume", "resume_from_checkpoint", "tracker"} == (
        FREE
    )
    trainer(**changed).fit(build(), output)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 4, 5, 5]
    # The rate of a step is that of the schedule as it is now, not of one that had come to its end.
    assert rows[4]["learning_rate"] > 1e-3


def test_two_processes_do_not_train_into_one_folder(build: Build, tmp_path: Path) -> None:
    output = tmp_path / "out"

    class Second(LanguageModeling):
        def batch(self, first: int, count: int) -> Batch:
            with pytest.raises(UserError, match="being trained by another process"):
                trainer().fit(build(), output)
            return super().batch(first, count)

    trainer(max_steps=1).fit(build(Second), output)
    assert (output / "model.safetensors").exists()


def test_a_folder_of_something_else_is_left_alone(build: Build, tmp_path: Path) -> None:
    output = tmp_path / "verifier"
    output.mkdir()
    (output / "model.safetensors").write_bytes(b"the weights of years")
    for resume in (True, False):
        with pytest.raises(UserError, match=r"holds model\.safetensors of something else"):
            trainer(resume=resume).fit(build(), output)
    assert (output / "model.safetensors").read_bytes() == b"the weights of years"


def test_what_was_deleted_is_made_again(build: Build, tmp_path: Path) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    for folder in (output, whole):
        trainer().fit(build(), folder)
    (output / "model.safetensors").unlink()
    trainer().fit(build(), output)
    assert same(output, whole)
    for lost in ("identity.json", "status.json"):
        (output / lost).write_text("{")
        trainer().fit(build(), output)
        assert same(output, whole)
        with pytest.raises(UserError, match=r"trainer\.seed=5 \(was 0\)"):
            trainer(seed=5).fit(build(), output)
    (output / "identity.json").write_text("{")
    with pytest.raises(UserError, match="does not say which training"):
        trainer(seed=5).fit(build(), output)


def test_a_best_that_could_not_be_saved_is_saved_later(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be logged before it is there: what is logged is not measured again."""
    output, whole = tmp_path / "out", tmp_path / "whole"
    trainer().fit(build(), whole)

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    objective = build()
    monkeypatch.setattr(objective, "save", fail)
    with pytest.raises(UserError, match="no space"):
        trainer().fit(objective, output)
    trainer().fit(build(), output)
    assert same(output / "best", whole / "best")
    assert logged(output) == logged(whole)


def test_passes_over_the_data_may_be_given(build: Build, tmp_path: Path) -> None:
    objective = build()
    samples = objective.num_samples
    options = {"num_train_epochs": 0.5, "per_device_train_batch_size": samples // 10}
    trainer(**options).fit(objective, tmp_path / "out")
    rows = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == round(0.5 * samples / (samples // 10))


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_those_of_transformers(build: Build, tmp_path: Path, name: str) -> None:
    """Logged as they were used, also over an interruption."""
    kwargs: dict[str, Any] = {
        "warmup_stable_decay": {"num_decay_steps": 2},
        "cosine_with_min_lr": {"min_lr": 1e-3},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-3},
    }
    options = {"lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs.get(name)}
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        trainer(**options).fit(asking(build, {2: [signal.SIGINT]}), output)
    trainer(**options).fit(build(), output)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = [row["learning_rate"] for row in rows if "loss" in row]

    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    theirs: Any = get_scheduler(
        name, optimizer, 2, STEPS, scheduler_specific_kwargs=dict(kwargs.get(name) or {})
    )
    expected: list[float] = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert found == pytest.approx(expected)


def test_a_schedule_that_lacks_an_option_is_named(build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cosine_with_min_lr.*min_lr.*lr_scheduler_kwargs"):
        trainer(lr_scheduler_type="cosine_with_min_lr").fit(build(), tmp_path / "out")


def test_it_speaks_without_a_terminal(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = build()
    trainer().fit(objective, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    parameters = sum(p.numel() for p in objective.module.parameters())
    assert f"{objective.num_samples:,} samples with {objective.num_tokens:,} counted" in lines[0]
    assert f"6 steps of 2 samples, which are {12 / objective.num_samples:.3g} passes" in lines[0]
    assert f"{parameters:,} trainable parameters" in lines[0]
    assert [line.split(":")[0] for line in lines[1:]] == [
        *(
            "step 0/6",
            "step 1/6",
            "step 2/6",
            "step 3/6",
            "step 3/6",
            "step 4/6",
            "step 5/6",
            "step 6/6",
        ),
        "step 6/6",
    ]
    assert "left" in lines[2]
