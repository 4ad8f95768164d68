"""One job on several processes: the same tokens and the same acceptance as on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

from specdec.core.errors import UserError
from specdec.lab.spec import ModelPart
from specdec.metrics import Tally
from specdec.results.run_dir import read_tally, read_traces
from tests.support.running import CommandLine, Tiny
from tests.support.sweeping import table

pytestmark = pytest.mark.usefixtures("empty_folder")

TIMED = "seconds"


def launch(num_processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Start `decode` with accelerate; without GPUs this is how it starts several processes."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port=0"]
    command = [sys.executable, *launcher, f"--num_processes={num_processes}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "specdec", "decode", *options],
        capture_output=True, text=True, check=False, timeout=600, env=environment,
    )  # fmt: skip


def counted(tally: Tally) -> dict[str, list[float]]:
    return {n: column.tolist() for n, column in tally.columns.items() if TIMED not in n}


def test_two_processes_write_what_one_does(tiny: Tiny, cli: CommandLine) -> None:
    """A sweep, so that a run begins after another has ended in both; prompts are dealt out."""
    grid = ("-m", "proposer=draft_model,ngram", "tree.gamma=3", "sampling.temperature=1")
    options = (*tiny.options("unused"), *grid)
    ended = launch(2, *options, "output=two")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("runs from") == 1, "both processes speak"
    assert cli("decode", *options, "output=one").status == 0
    runs = sorted(path.parent.name for path in Path("one").glob("*/status.json"))
    assert len(runs) == 2
    for run in runs:
        one, two = (Path(folder) / run for folder in ("one", "two"))
        pairs = [[(t.prompt_id, t.output_ids) for t in read_traces(path)] for path in (one, two)]
        assert pairs[0] == pairs[1]
        assert counted(read_tally(one)) == counted(read_tally(two))
        assert not list(two.glob("traces.part-*")), "the parts were not united"
    assert_frame_equal(table(Path("one")), table(Path("two")))


def test_what_fails_in_one_process_ends_all(tiny: Tiny) -> None:
    """Nobody waits for prompts that will never come."""
    ended = launch(2, *tiny.options("run"), "verifier.path=missing")
    assert ended.returncode != 0
    assert "error: verifier.path='missing': not loaded" in ended.stderr


def test_arms_are_timed_in_one_process(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = cli("compare", *tiny.options("run"))
    assert ended.status == 2
    assert ended.err.startswith("error: compare times arms against each other, in one process")


@pytest.mark.parametrize(
    ("proposer", "temperature"), [("none", 0), ("ngram", 1), ("draft_model", 0)]
)
def test_processes_that_share_weights_write_what_one_writes(
    proposer: str, temperature: float, tiny: Tiny, cli: CommandLine
) -> None:
    """Tensor parallelism: the same tokens, written and said once."""
    drawn = (f"sampling.temperature={temperature}", f"proposer={proposer}", "batch=2")
    options = (*tiny.options("unused"), *drawn)
    ended = launch(2, *options, "verifier.tp_plan=auto", "output=two")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("run directory: ") == 1, "both processes speak"
    assert cli("decode", *options, "output=one").status == 0
    one, two = (
        [(trace.prompt_id, trace.output_ids) for trace in read_traces(Path(folder))]
        for folder in ("one", "two")
    )
    assert one == two
    assert not list(Path("two").glob("*.part-*")), "both processes wrote"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "needs several processes, torchrun"),
        (["device=auto"], "splits each weight, and does not go with device"),
        (["verifier.quantization=int8"], "splits each weight, and does not go with quantization"),
        (["runtime=compiled"], "run by runtime=eager alone, not by 'compiled'"),
    ],
)
def test_weights_are_not_shared_where_they_cannot_be(
    options: list[str],
    expected: str,
    tiny: Tiny,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("specdec.lm.quantization.find_spec", lambda name: True)
    monkeypatch.setattr("specdec.runtime.choice.compiler", lambda: "c++")
    ended = cli("decode", *tiny.options("run"), "verifier.tp_plan=auto", *options)
    assert ended.status == 2
    assert ended.err.startswith(f"error: verifier.tp_plan='auto': {expected}")


def test_other_commands_share_no_weights() -> None:
    part = ModelPart("verifier", {"path": "zoo:verifier", "tp_plan": "auto"})
    with pytest.raises(UserError, match=r"verifier.tp_plan='auto': expected null: processes share"):
        part.build()
