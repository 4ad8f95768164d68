"""Trackers: wandb without an account ends well and leaves what `wandb sync` uploads."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.results.tracked_run import run_id
from specdec.training.tracked_name import tracked_name
from specdec.training.trainer import Trainer
from tests.support.building import Build


@pytest.mark.thorough
def test_wandb_without_an_account_logs_offline(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    output = tmp_path / "out"
    Trainer(max_steps=2, warmup_steps=1, logging_steps=1, tracker="wandb").fit(build(), output)
    assert "wandb sync" in capsys.readouterr().out
    (log,) = (output / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # another process writes it
    while b"eval_bits_per_byte" not in log.read_bytes():
        assert time.monotonic() < deadline, "the metrics never came"
        time.sleep(0.1)
    assert b"tokens_per_second" in log.read_bytes()


def test_an_unknown_or_missing_tracker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^tracker='csv': expected one of jsonl, wandb"):
        Trainer(max_steps=1, tracker="csv")
    monkeypatch.setattr("specdec.results.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^tracker='tensorboard': not installed"):
        Trainer(max_steps=1, tracker="tensorboard")


def test_a_tracker_that_breaks_fails_no_training(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the service\nis down")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda *_, **__: None)
    monkeypatch.setattr("accelerate.Accelerator.log", broken)
    trainer = Trainer(max_steps=2, warmup_steps=1, logging_steps=1)
    monkeypatch.setattr(Trainer, "log_with", "tensorboard")
    trainer.fit(build(), tmp_path)
    said = capsys.readouterr().out
    assert said.count("tracker=tensorboard: ConnectionError: the service is down") == 1
    assert (tmp_path / "training.json").exists()


def test_wandb_goes_offline_where_its_service_is_not_reached(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wandb: Any = pytest.importorskip("wandb", reason="wandb is an optional extra")
    runs: list[dict[str, Any]] = []
    begin = wandb.init

    def init(**options: Any) -> Any:
        runs.append(options)
        if options.get("mode") is None:
            raise ConnectionError("no such host")
        return begin(**{**options, "mode": "disabled"})

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "my_run")
    trainer = Trainer(max_steps=1, warmup_steps=0, tracker="wandb", group="a_sweep")
    trainer.fit(build(), tmp_path / "out")
    assert capsys.readouterr().out.count("no such host); logs offline") == 1
    assert [options.get("mode") for options in runs] == [None, "offline"]
    assert all(options["project"] == "mine" and options["group"] == "a_sweep" for options in runs)
    assert all("name" not in options for options in runs), "WANDB_NAME comes first"
    assert (tmp_path / "out" / "training.json").exists()


def test_a_moved_folder_is_the_same_run_and_a_copied_one_another(tmp_path: Path) -> None:
    made = run_id(tmp_path / "out")
    assert run_id(tmp_path / "out") == made
    (tmp_path / "out").rename(tmp_path / "moved")
    assert run_id(tmp_path / "moved") == made
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    assert run_id(tmp_path / "copied") != made


def test_a_training_is_named_by_what_it_is() -> None:
    options = {"train": "medusa", "loss": "kl", "verifier.path": "zoo:verifier"}
    assert tracked_name(options, Path("/a/lr=1/trained")) == "medusa-kl-verifier-lr=1"
    assert tracked_name({}, Path("/a/out")) == "out"
