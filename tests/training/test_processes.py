"""Two processes with half the batch each train as one does."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from specdec.core.jsonl import read_jsonl


def launch(
    num_processes: int, output: Path, tiny, batch_size: int, objective: Sequence[str]
) -> list[float]:
    """Train in processes of their own; returns the loss of each step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    options = [
        *(*objective, f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"),
        *(f"data.held_out_path={tiny.text}", f"output={output}", "max_steps=4"),
        *("data.max_length=16", "trainer.logging_steps=1", "trainer.warmup_steps=1"),
        f"trainer.per_device_train_batch_size={batch_size}",
    ]
    program = [sys.executable, *launcher, "-m", "specdec.experiments.train", *options]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("trained 4 steps") == 1, f"not one voice:\n{ended.stdout}"
    return [row["loss"] for _, row in read_jsonl(output / "metrics.jsonl") if "loss" in row]


def test_two_processes_with_half_the_batch_give_the_losses_of_one(tiny, tmp_path: Path) -> None:
    one = launch(1, tmp_path / "one", tiny, 4, ["train=medusa"])
    two = launch(2, tmp_path / "two", tiny, 2, ["train=medusa"])
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-5)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["num_heads"] == 4


def test_one_process_distils_and_all_train_on_its_answers(tiny, tmp_path: Path) -> None:
    """The draft's embeddings are tied: their gradient comes in two parts."""
    draft = ["train=draft_model", "loss=kl", "distill.max_new_tokens=8", "distill.prompt_tokens=4"]
    answers = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    one = launch(1, tmp_path / "one", tiny, 4, [*draft, f"distill.path={answers[0]}"])
    two = launch(2, tmp_path / "two", tiny, 2, [*draft, f"distill.path={answers[1]}"])
    assert two == pytest.approx(one, rel=1e-5)
    assert answers[0].read_bytes() == answers[1].read_bytes()
