"""Experiments know their command; several of them are one sweep; nothing ends in a multirun."""

from pathlib import Path

import pytest
import yaml

from specdec.command.chosen_experiment import INSTEAD, experiments
from tests.support.running import CommandLine, Tiny
from tests.test_configs import CONFIGS, ENTRY_POINTS, stems

pytestmark = pytest.mark.usefixtures("empty_folder")

SWEEPING = ("decode", "train")
OTHER = {"decode": "compare", "compare": "train", "train": "decode"}


def command_of(stem: str) -> str:
    return yaml.safe_load((CONFIGS / "experiment" / f"{stem}.yaml").read_text())["command"]


@pytest.mark.parametrize("stem", stems("experiment"))
def test_an_experiment_run_with_another_command_says_which_one_it_is_for(
    cli: CommandLine, stem: str
) -> None:
    own = command_of(stem)
    ended = cli(OTHER[own], f"experiment={stem}")
    expected = (
        f"error: experiment={stem}: is for specdec-{own}; run specdec-{own} experiment={stem}"
    )
    assert (ended.status, ended.err) == (2, expected + "\n")
    assert not list(Path().iterdir())


def test_so_does_one_of_several_in_a_sweep(cli: CommandLine) -> None:
    ended = cli("decode", "-m", "experiment=tree_budget,demo", "output=sweep")
    assert ended.status == 2
    assert ended.err.startswith("error: experiment=demo: is for specdec-compare; ")
    assert not list(Path().iterdir())


def test_every_command_sweeps_or_says_what_to_do_instead() -> None:
    assert INSTEAD.keys() | set(SWEEPING) == set(ENTRY_POINTS)
    assert not INSTEAD.keys() & set(SWEEPING)


@pytest.mark.parametrize("command", INSTEAD)
@pytest.mark.parametrize("overrides", [["-m", "seed=0,1"], ["hydra.mode=MULTIRUN"], ["--multirun"]])
def test_no_command_ends_in_a_multirun(
    cli: CommandLine, command: str, overrides: list[str]
) -> None:
    ended = cli(command, *overrides)
    (line,) = ended.err.splitlines()
    assert ended.status == 2
    first_override = "-m" if overrides[0].startswith("-") else overrides[0]
    assert line == f"error: {first_override}: specdec-{command} does not sweep: {INSTEAD[command]}"
    assert not list(Path().iterdir()), "Hydra's own multirun has begun"


@pytest.mark.parametrize("command", ["compare", "record", "costs"])
def test_several_values_without_a_flag_are_answered_likewise(
    cli: CommandLine, command: str
) -> None:
    ended = cli(command, "sampling.temperature=0,1")
    (line,) = ended.err.splitlines()
    assert ended.status == 2
    assert line.startswith(f"error: sampling.temperature=0,1: {INSTEAD[command]}; ")


def experiment(name: str, text: str) -> None:
    """Write an experiment of the user's own."""
    folder = Path("mine/experiment")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text("# @package _global_\n" + text)


def swept(params: str, command: str = "command: decode\n") -> str:
    return f"{command}hydra:\n  mode: MULTIRUN\n  sweeper: {{params: {{{params}}}}}\n"


@pytest.mark.thorough
@pytest.mark.parametrize("declared", ["command: decode\n", ""])
def test_experiments_of_ones_own_are_swept_together(
    cli: CommandLine, tiny: Tiny, declared: str
) -> None:
    """Each with what it sweeps by itself, in one folder, and a run that both have once."""
    experiment("gammas", swept("proposer: 'none,ngram', tree.gamma: '1,2'", declared))
    experiment("seeds", swept("proposer: 'none,ngram', seed: '0,1'", declared))
    overrides = [text for text in tiny.options("") if not text.startswith("output=")]
    overrides += ["experiment=gammas,seeds", "prompts.limit=1", "max_new_tokens=2"]
    overrides += ["--config-dir", "mine"]
    ended = cli("decode", *overrides)
    assert ended.status == 0, ended.err
    assert "6 runs from 8 combinations" in ended.out
    (folder,) = Path("outputs").rglob("report.html")
    assert folder.parent.name == "gammas+seeds"
    again = cli("decode", *overrides, "--dry-run")
    assert "6 complete, 0 to run" in again.out
    named = cli("decode", *overrides, "output=here", "--dry-run")
    assert "6 to run; results in here" in named.out


def test_what_an_experiment_of_ones_own_declares_is_heeded(cli: CommandLine) -> None:
    experiment("theirs", "command: compare\narms: ['proposer=none']\n")
    for overrides in (["experiment=theirs"], ["-m", "experiment=theirs", "seed=0,1"]):
        ended = cli("decode", *overrides, "--config-dir", "mine")
        assert ended.status == 2
        assert "experiment=theirs: is for specdec-compare" in ended.err


def test_it_is_heeded_where_another_experiment_builds_on_it(cli: CommandLine) -> None:
    experiment("base", "command: compare\narms: ['proposer=none']\n")
    experiment("above", "defaults: [base]\nseed: 3\n")
    ended = cli("decode", "experiment=above", "--config-dir", "mine")
    assert ended.status == 2
    assert "experiment=above: is for specdec-compare" in ended.err


def test_one_that_sweeps_without_saying_for_whom_is_no_multirun_either(cli: CommandLine) -> None:
    experiment("silent", swept("seed: '0,1'", command=""))
    ended = cli("compare", "experiment=silent", "--config-dir", "mine")
    assert ended.status == 2
    assert ended.err.startswith("error: experiment=silent: specdec-compare does not sweep: ")
    assert {path.name for path in Path().iterdir()} == {"mine"}


@pytest.mark.parametrize(
    ("overrides", "names"),
    [("experiment=a", ["a"]), ("experiment=a,b", ["a", "b"]), ("experiment=null", ["None"]),
     ("seed=1", []), ("experiment=[", [])],
)  # fmt: skip
def test_the_names_of_experiments_are_read_off_the_command_line(
    overrides: str, names: list[str]
) -> None:
    assert list(experiments([overrides])) == names
