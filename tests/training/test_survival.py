"""What a killed process and a full disk leave behind: a run that ends as if nothing had been."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from specdec.core.errors import UserError
from specdec.core.jsonl import read_jsonl
from specdec.training.trainer import Trainer
from tests.support.building import Build
from tests.support.faults import files_of_at_most
from tests.support.running import Tiny

STEPS = 24
KILLS = 3


def command(tiny: Tiny, output: Path) -> list[str]:
    options = [
        *("train=chained", "train.link=both", "train.prefix_attention=true", "loss=lk"),
        *("train.share=0.7", f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"),
        *(f"data.held_out_path={tiny.text}", f"output={output}", f"max_steps={STEPS}"),
        *("data.max_length=16", "data.eval_samples=2", "evaluation.max_new_tokens=4"),
        *("trainer.logging_steps=3", "trainer.save_steps=4", "trainer.eval_steps=12"),
        *("trainer.per_device_train_batch_size=2", "trainer.warmup_steps=5"),
    ]
    return [sys.executable, "-m", "specdec", "train", *options]


def start(tiny: Tiny, output: Path) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command(tiny, output), stdout=quiet, stderr=quiet)


def logged(output: Path) -> list[dict[str, float]]:
    rows = [row for _, row in read_jsonl(output / "metrics.jsonl")]
    return [{key: row[key] for key in row if key != "tokens_per_second"} for row in rows]


def num_steps(output: Path) -> int:
    """The last step that was logged, of a log that may be being written."""
    path = output / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def test_killed_at_any_moment_and_resumed_is_never_stopped(tiny: Tiny, tmp_path: Path) -> None:
    """SIGKILL, which no program can catch; weights are equal bit for bit, and so is the log."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert start(tiny, whole).wait(timeout=300) == 0
    chance = random.Random(7)
    for kill in range(KILLS):
        process = start(tiny, torn)
        deadline = time.monotonic() + 120
        wanted = num_steps(torn) + 1 + kill % 2
        while process.poll() is None and num_steps(torn) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.2 * chance.random())  # within a step, a checkpoint or an evaluation
        process.kill()  # says nothing of a process that has ended
        if process.wait() == 0:
            break  # it had ended
    assert start(tiny, torn).wait(timeout=300) == 0
    last = Path("checkpoints", f"step-{STEPS}", "model.safetensors")
    expected, found = (load_file(each / last) for each in (whole, torn))
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected), "not bit-identical"
    assert logged(torn) == logged(whole)


def test_a_full_disk_leaves_the_last_good_checkpoint(build: Build, tmp_path: Path) -> None:
    """One line names it; the checkpoint before is whole, and resuming from it ends the run."""
    output, whole = tmp_path / "out", tmp_path / "whole"
    options: dict[str, Any] = {"save_steps": 2, "warmup_steps": 1, "logging_steps": 1}
    Trainer(max_steps=2, **options).fit(build(), output)
    with (
        pytest.raises(UserError, match=r"cannot be written \(.*too large"),
        files_of_at_most(20_000),
    ):
        Trainer(max_steps=6, **options).fit(build(), output)
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step-2"], "what was written in vain was not given back"
    Trainer(max_steps=6, **options).fit(build(), output)

    Trainer(max_steps=2, **options).fit(build(), whole)
    Trainer(max_steps=6, **options).fit(build(), whole)
    expected, found = (load_file(each / "model.safetensors") for each in (whole, output))
    assert all(expected[name].equal(found[name]) for name in expected)


def test_a_result_that_cannot_be_written_leaves_the_old_one(build: Build, tmp_path: Path) -> None:
    output = tmp_path / "out"
    Trainer(max_steps=2, warmup_steps=1, save_best=False).fit(build(), output)
    before = saved(output)
    resumed = Trainer(max_steps=2, warmup_steps=1, save_best=False)
    with pytest.raises(UserError, match="cannot be written"), files_of_at_most(5_000):
        resumed.fit(build(), output)
    assert saved(output) == before


def saved(output: Path) -> dict[str, bytes]:
    """What a user loads."""
    found = {path.name: path.read_bytes() for path in output.glob("*.*") if path.is_file()}
    noted = ("metrics.jsonl", "status.json")
    return {name: content for name, content in found.items() if name not in noted}
