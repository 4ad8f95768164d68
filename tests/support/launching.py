"""Train heads in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

from specdec.core.jsonl import read_jsonl
from tests.support.running import Tiny


def heads_options(output: Path, tiny: Tiny, batch_size: int, *more: str) -> list[str]:
    """Return the overrides of four logged steps."""
    return [
        *("train=medusa", f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"),
        *(f"data.held_out_path={tiny.text}", f"output={output}", "max_steps=4"),
        *("data.max_length=16", "trainer.logging_steps=1", "trainer.warmup_steps=1"),
        *(f"trainer.per_device_train_batch_size={batch_size}", *more),
    ]


def launch(
    num_processes: int, output: Path, tiny: Tiny, batch_size: int, *more: str
) -> list[float]:
    """Train in several processes; returns the loss of each step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    options = heads_options(output, tiny, batch_size, *more)
    program = [sys.executable, *launcher, "-m", "specdec", "train", *options]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("trained 4 steps") == 1, f"not one voice:\n{ended.stdout}"
    return losses(output)


def losses(output: Path) -> list[float]:
    """Read the loss of each logged step."""
    return [row["loss"] for _, row in read_jsonl(output / "metrics.jsonl") if "loss" in row]
