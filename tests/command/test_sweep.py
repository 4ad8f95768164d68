"""A sweep survives: kills, failures, a second worker; nothing complete is lost or done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pandas.testing import assert_frame_equal

from specdec.core.jsonl import read_jsonl
from tests.support.running import CommandLine, Ended, Tiny
from tests.support.sweeping import table

pytestmark = pytest.mark.usefixtures("empty_folder")

GRID = ("proposer=ngram,draft_model", "tree.gamma=1,2,3", "sampling.temperature=0,1")
SMALL = ("proposer=none,ngram,draft_model", "tree.gamma=1,2", "verification=rejection,block")


def sweep_options(tiny: Tiny, folder: Path | str, *more: str) -> list[str]:
    return ["-m", *tiny.options(folder, *more)]


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, cli: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 24 runs that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    ended = cli("decode", *sweep_options(tiny, folder, *GRID))
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def small_sweep(
    tiny: Tiny, cli: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("small") / "sweep"
    return folder, cli("decode", *sweep_options(tiny, folder, *SMALL))


@pytest.fixture
def small(small_sweep: tuple[Path, Ended]) -> Ended:
    """A copy of a sweep of seven runs, in `sweep`, and what it said."""
    shutil.copytree(small_sweep[0], "sweep")
    return small_sweep[1]


def runs(folder: Path | str) -> dict[str, dict[str, Any]]:
    """Return what each run directory says of its state."""
    files = sorted(Path(folder).glob("*/status.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def change_times(folder: Path | str) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in Path(folder).glob("*/*.json*")}


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.sweeping", *map(str, arguments)]
    found = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=900, env=found
    )


# --- What is run ---


def test_each_run_is_done_once_and_named_by_what_it_uses(small: Ended) -> None:
    """`none` uses neither gamma nor a rule, and block verification cannot decide on n-grams."""
    assert small.status == 0, small.err
    assert {re.sub("-[0-9a-f]{8}$", "", name) for name in runs("sweep")} == {
        "none",
        *(f"ngram,gamma={gamma},rejection" for gamma in (1, 2)),
        *(
            f"draft_model,gamma={gamma},{rule}"
            for gamma in (1, 2)
            for rule in ("rejection", "block")
        ),
    }
    assert {status["state"] for status in runs("sweep").values()} == {"complete"}
    assert "7 runs from 12 combinations, 0 complete, 7 to run" in small.out
    assert "left out, 2 combinations: verification=block: cannot decide" in small.out
    assert {path.name for path in Path("sweep").iterdir() if path.is_file()} == {
        *("report.html", "summary.csv", "summary.md", "summary.parquet")
    }


def test_the_same_command_again_changes_nothing(small: Ended, tiny: Tiny, cli: CommandLine) -> None:
    before = change_times("sweep")
    again = cli("decode", *sweep_options(tiny, "sweep", *SMALL))
    assert again.status == 0, again.err
    assert "7 complete, 0 to run" in again.out
    assert change_times("sweep") == before


def test_runs_of_an_overlapping_sweep_are_shared(
    small: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    before = change_times("sweep")
    more = ("proposer=ngram", "tree.gamma=2,3")
    assert "1 complete, 1 to run" in cli("decode", *sweep_options(tiny, "sweep", *more)).out
    assert before.items() <= change_times("sweep").items()
    assert len(runs("sweep")) == 8


def test_resume_false_decodes_again(small: Ended, tiny: Tiny, cli: CommandLine) -> None:
    """What is asked for, and nothing else."""
    before, part = change_times("sweep"), ("proposer=ngram", "tree.gamma=1,2", "resume=false")
    again = cli("decode", *sweep_options(tiny, "sweep", *part))
    assert again.status == 0, again.err
    after = change_times("sweep")
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] > before[name]} == {
        name for name in before if Path(name).parent.name.startswith("ngram")
    }


def test_a_dry_run_says_what_would_run_and_runs_nothing(
    small: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    ended = cli("decode", *sweep_options(tiny, "never", *SMALL), "--dry-run")
    assert ended.status == 0, ended.err
    assert not Path("never").exists()
    listed = [line.split()[:2] for line in ended.out.splitlines() if line.startswith("new")]
    assert len(listed) == 7
    assert {name for _, name in listed} == set(runs("sweep"))
    again = cli("decode", *sweep_options(tiny, "sweep", *SMALL), "--dry-run")
    assert len(re.findall("^complete ", again.out, re.MULTILINE)) == 7


def test_a_dry_run_of_one_run_runs_nothing_either(tiny: Tiny, cli: CommandLine) -> None:
    ended = cli("decode", *tiny.options("run"), "--dry-run")
    assert (ended.status, ended.out.strip()) == (0, f"one run, new: {Path('run').resolve()}")
    assert not Path("run/status.json").exists()


@pytest.mark.thorough
def test_changed_prompts_make_other_runs(small: Ended, tiny: Tiny, cli: CommandLine) -> None:
    """A complete run of other texts would be mistaken for one of these."""
    prompts = Path("prompts.jsonl")
    for text in ("first", "second"):
        prompts.write_text(json.dumps({"id": "a", "prompt": text}) + "\n")
        options = sweep_options(tiny, "changed", f"prompts.path={prompts}", "proposer=none,ngram")
        assert cli("decode", *options).status == 0
    assert len(runs("changed")) == 4


def test_an_experiment_sweeps_without_a_flag(tiny: Tiny, cli: CommandLine) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/short.yaml").write_text(
        "# @package _global_\noutput: outputs/short\nhydra:\n  mode: MULTIRUN\n"
        "  sweeper:\n    params:\n      tree.gamma: 1,3\n"
    )
    without_output = [text for text in tiny.options("") if not text.startswith("output=")]
    options = [*without_output, "proposer=ngram", "--config-dir", "mine"]
    ended = cli("decode", *options, "experiment=short")
    assert ended.status == 0, ended.err
    assert len(runs("outputs/short")) == 2


def test_models_are_loaded_once_for_all_jobs(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.lm import from_checkpoint, load
    from specdec.lm.checkpoint import Checkpoint

    loaded: list[str] = []
    original = from_checkpoint._with_all_weights

    def counting(checkpoint: Checkpoint, *arguments: Any) -> Any:
        loaded.append(Path(checkpoint.path).name)
        return original(checkpoint, *arguments)

    load._proven.cache_clear()
    monkeypatch.setattr(from_checkpoint, "_with_all_weights", counting)
    options = ("proposer=draft_model", "tree.gamma=1,2,3")
    ended = cli("decode", *sweep_options(tiny, "sweep", *options))
    assert ended.status == 0, ended.err
    assert len(runs("sweep")) == 3
    assert sorted(loaded) == ["draft", "verifier"]


# --- What goes wrong ---


def test_a_wrong_value_ends_a_sweep_before_it_begins(tiny: Tiny, cli: CommandLine) -> None:
    ended = cli("decode", *sweep_options(tiny, "sweep", "proposer=ngram", "tree.gamma=1,0"))
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert "gamma" in ended.err
    assert not Path("sweep").exists()


def test_a_sweep_of_what_cannot_be_says_why(tiny: Tiny, cli: CommandLine) -> None:
    options = ("proposer=ngram", "verification=block", "seed=0,1")
    ended = cli("decode", *sweep_options(tiny, "sweep", *options))
    assert ended.status == 2
    assert "nothing to run: verification=block: cannot decide" in ended.err


def without_numbers(tiny: Tiny) -> str:
    """Copy a model, and put what is no number into its weights, which only loading it can tell."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny.verifier, "broken")
    file = Path("broken/model.safetensors")
    weights = {name: weight * float("nan") for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return "broken"


def test_a_failed_run_is_listed_and_the_others_go_on(tiny: Tiny, cli: CommandLine) -> None:
    """Its traceback is kept, and the same command tries it again, and it alone."""
    verifiers = f"verifier.path={tiny.verifier},{without_numbers(tiny)}"
    options = sweep_options(tiny, "sweep", "proposer=none,ngram")
    options = [text for text in options if not text.startswith("verifier.path=")]
    ended = cli("decode", *options, verifiers)
    assert ended.status == 1
    states = [status["state"] for status in runs("sweep").values()]
    assert sorted(states) == ["complete", "complete", "failed", "failed"]
    assert "2 of 4 runs are not complete" in ended.err
    (reason,) = re.findall(r"^failed: .*broken.*", ended.err, re.MULTILINE)
    assert reason.startswith("failed: verifier.path='broken'")
    assert all(name in reason for name, status in runs("sweep").items() if status["error"])
    errors = [status["error"] for status in runs("sweep").values() if status["error"]]
    assert all("Traceback" in error and "broken" in error for error in errors)
    again = cli("decode", *options, verifiers)
    assert "2 complete, 2 to run" in again.out
    assert again.status == 1


def test_a_bug_in_one_run_does_not_end_the_sweep(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.proposer.ngram import NGram

    def broken(self: NGram, contexts: object) -> list[object]:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(NGram, "propose", broken)
        ended = cli("decode", *sweep_options(tiny, "sweep", "proposer=ngram,none"))
    assert ended.status == 1
    assert "ZeroDivisionError: a bug" in ended.err
    states = {name.split("-")[0]: status["state"] for name, status in runs("sweep").items()}
    assert states == {"ngram": "failed", "none": "complete"}
    assert cli("decode", *sweep_options(tiny, "sweep", "proposer=ngram,none")).status == 0


# --- Kills, and second workers ---


def assert_same_sweep(folder: Path, undisturbed: Path) -> None:
    """No run is lost, repeated or damaged, and the tables are equal, seconds aside."""
    assert runs(folder).keys() == runs(undisturbed).keys()
    assert {status["state"] for status in runs(folder).values()} == {"complete"}
    for name in runs(folder):
        assert texts(folder / name) == texts(undisturbed / name)
    assert_frame_equal(table(folder), table(undisturbed))


def texts(run: Path) -> list[tuple[str, list[int]]]:
    rows = [row for _, row in read_jsonl(run / "traces.jsonl")]
    return sorted((row["prompt_id"], row["output_ids"]) for row in rows)


@pytest.mark.thorough
@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_sweep_that_is_killed_ends_as_if_it_had_not_been(
    undisturbed: Path, tiny: Tiny, tmp_path: Path, num_kills: int
) -> None:
    folder = tmp_path / "killed"
    # Longer texts, so that a kill finds a run at work.
    ended = script(num_kills, 1, *sweep_options(tiny, folder, *GRID))
    assert ended.returncode == 0, ended.stderr
    hits = int(re.findall(r"kills (\d+)", ended.stdout)[0])
    assert hits, "the sweep ended before the first kill: the test is blind"
    assert_same_sweep(folder, undisturbed)


@pytest.mark.thorough
def test_two_workers_share_a_sweep(undisturbed: Path, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    options = sweep_options(tiny, folder, *GRID)
    command = [sys.executable, "-m", "specdec", "decode", *options]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [worker.communicate(timeout=600) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    decoded = [re.findall(r"\]\S*(?: .*? left)?  (\S+): tau", out) for out, _ in said]
    everything = sorted([*decoded[0], *decoded[1]])
    assert everything == sorted(runs(undisturbed)), "a run was done twice, or not at all"
    assert_same_sweep(folder, undisturbed)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("launcher", "grid"),
    [
        ("joblib", ("proposer=ngram", "tree.gamma=1,3")),
        pytest.param(
            "submitit_local", ("proposer=ngram", "tree.gamma=1,3"), marks=pytest.mark.slow
        ),
        pytest.param("joblib", GRID, marks=pytest.mark.slow, id="joblib-all"),
        pytest.param("submitit_local", GRID, marks=pytest.mark.slow, id="submitit_local-all"),
    ],
)
def test_launchers_come_to_the_same_table(
    tiny: Tiny, cli: CommandLine, tmp_path: Path, launcher: str, grid: tuple[str, ...]
) -> None:
    alone, folder = tmp_path / "alone", tmp_path / launcher
    assert cli("decode", *sweep_options(tiny, alone, *grid)).status == 0
    overrides = {
        "joblib": ["hydra.launcher.n_jobs=2"],
        "submitit_local": ["hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"],
    }[launcher]
    options = sweep_options(tiny, folder, *grid, f"hydra/launcher={launcher}", *overrides)
    command = [sys.executable, "-m", "specdec", "decode", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert_same_sweep(folder, alone)


SBATCH = """#!/bin/sh
cp "$1" {folder}/script.sh
echo "sbatch: error: this is not a cluster" >&2
exit 1
"""


@pytest.mark.thorough
def test_slurm_gets_the_options_of_the_launcher(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster: a stand-in for sbatch keeps the script, and refuses it."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun"):
        (commands / name).write_text(SBATCH.format(folder=tmp_path))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    overrides = [
        "partition=gpus",
        "gpus_per_node=1",
        "timeout_min=90",
        "mem_gb=40",
        "array_parallelism=2",
    ]
    options = [
        *sweep_options(tiny, tmp_path / "sweep", "proposer=ngram", "tree.gamma=1,2,3"),
        *("hydra/launcher=submitit_slurm", *(f"hydra.launcher.{text}" for text in overrides)),
    ]
    command = [sys.executable, "-m", "specdec", "decode", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 1
    assert "this is not a cluster" in ended.stderr
    script = (tmp_path / "script.sh").read_text()
    for line in ("partition=gpus", "gpus-per-node=1", "time=90", "mem=40GB", "array=0-2%2"):
        assert f"#SBATCH --{line}\n" in script
    assert "submitit.core._submit" in script
