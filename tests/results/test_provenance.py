"""Under which circumstances a number was measured: nothing guessed, nothing that can fail."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.results import provenance as module
from specdec.results.provenance import provenance

ROOT = Path(__file__).parents[2]


def measured() -> dict[str, Any]:
    return provenance(torch.device("cpu"), "float32", "sdpa")


def test_everything_can_be_written_as_json() -> None:
    found = measured()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_numbers_of_a_machine_are_there() -> None:
    found = measured()
    assert found["num_threads"] == torch.get_num_threads()
    assert (found["dtype"], found["attention"]) == ("float32", "sdpa")
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"].endswith("(cpu)")
    assert len(found["device"]) > len(" (cpu)"), "a processor without a name"


def test_the_commit_is_that_of_the_checkout() -> None:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:  # unpacked without its history
        assert measured()["git"] is None
    else:
        assert measured()["git"]["commit"] == ended.stdout.strip()


def test_a_missing_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert measured()["git"] is None


def test_a_package_that_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert measured()["versions"]["no-such-package"] is None
