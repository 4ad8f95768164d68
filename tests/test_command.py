"""The command `specdec`: what there is, by what one wants to do; and which version it is."""

import shlex
import subprocess
import sys
from importlib import import_module, metadata

import pytest

import specdec as sd
from specdec.__main__ import COMMANDS, USES, main
from tests.test_configs import ENTRY_POINTS, require_composed


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["specdec", *arguments])
    try:
        main()
    except SystemExit as ending:
        return int(str(ending.code))
    return 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_it_lists_every_command_with_an_example(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert set(COMMANDS) == set(ENTRY_POINTS)
    for name in ENTRY_POINTS:
        assert f"specdec {name} " in shown


@pytest.mark.parametrize(("command", "options"), USES.values())
def test_its_examples_can_be_typed(command: str, options: str) -> None:
    require_composed(command, shlex.split(options))


def test_it_runs_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, "report", "no_such_folder") == 2
    assert capsys.readouterr().err.startswith("error: run='no_such_folder': ")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("decod", "did you mean specdec decode?"), ("specdec-trian", "did you mean specdec train?"),
     ("x", "there are compare, decode"), ("--verbose", "there are compare")],
)  # fmt: skip
def test_an_unknown_command_is_one_line(
    typed: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, typed, "proposer=none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {typed}: no such command; {hint}")


def test_the_version_is_that_of_the_distribution() -> None:
    assert sd.__version__ == metadata.version("specdec-lab")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_command_says_our_version(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"specdec-{name}", "--version"])
    getattr(import_module("specdec.command.doors"), name)()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"specdec-lab {sd.__version__} (torch {metadata.version('torch')}, ")
    assert status_of(monkeypatch, name, "--version") == status_of(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.splitlines() == [line, line]


def test_neither_waits_for_torch() -> None:
    code = "import runpy, sys; sys.argv = ['specdec']; runpy.run_module('specdec', {}, '__main__');"
    code += "print(sorted({'torch', 'transformers', 'hydra'} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
