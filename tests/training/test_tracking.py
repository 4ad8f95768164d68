"""Trackers: wandb without an account ends well and leaves what `wandb sync` uploads."""

import time
from pathlib import Path

import pytest
from building import Build

from specdec.core.errors import UserError
from specdec.training.trainer import Trainer


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
    monkeypatch.setattr("specdec.report.tracking.find_spec", lambda name: None)
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
    trainer.log_with = "tensorboard"
    trainer.fit(build(), tmp_path)
    said = capsys.readouterr().out
    assert said.count("tracker=tensorboard: ConnectionError: the service is down") == 1
    assert (tmp_path / "training.json").exists()
