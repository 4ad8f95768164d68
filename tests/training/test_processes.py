"""Two processes with half the batch each train as one does."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from specdec.core.jsonl import read_jsonl


def options(output: Path, tiny, batch_size: int, objective: Sequence[str]) -> list[str]:
    """Return the options of a short training run."""
    return [
        *(*objective, f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"),
        *(f"data.held_out_path={tiny.text}", f"output={output}", "max_steps=4"),
        *("data.max_length=16", "trainer.logging_steps=1", "trainer.warmup_steps=1"),
        f"trainer.per_device_train_batch_size={batch_size}",
    ]


def launch(num_processes: int, given: Sequence[str]) -> None:
    """Train in processes of their own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    program = [sys.executable, *launcher, "-m", "specdec.experiments.train", *given]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("trained 4 steps") == 1, f"not one voice:\n{ended.stdout}"


def losses(output: Path) -> list[float]:
    """Return the loss of each step."""
    return [row["loss"] for _, row in read_jsonl(output / "metrics.jsonl") if "loss" in row]


def test_two_processes_with_half_the_batch_give_the_losses_of_one(tiny, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch(1, options(one, tiny, 4, ["train=medusa"]))
    launch(2, options(two, tiny, 2, ["train=medusa"]))
    assert len(losses(one)) == 4
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert json.loads((two / "config.json").read_text())["num_heads"] == 4


def test_one_process_distils_and_all_train_on_its_answers(cli, tiny, tmp_path: Path) -> None:
    """The draft's embeddings are tied: their gradient comes in two parts."""
    draft = ["train=draft_model", "loss=kl", "distill.max_new_tokens=8", "distill.prompt_tokens=4"]
    one, two = tmp_path / "one", tmp_path / "two"
    ended = cli("train", *options(one, tiny, 4, [*draft, f"distill.path={one}.jsonl"]))
    assert ended.status == 0, ended.err
    launch(2, options(two, tiny, 2, [*draft, f"distill.path={two}.jsonl"]))
    assert len(losses(one)) == 4
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert Path(f"{two}.jsonl").read_bytes() == Path(f"{one}.jsonl").read_bytes()
