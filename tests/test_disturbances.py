"""A few of the events of `disturbances.py`, which takes minutes for a hundred of them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_few_disturbances() -> None:
    """In a process of its own: whoever forks must have no threads."""
    command = [
        sys.executable,
        "-m",
        "tests.disturbances",
        "--events",
        "6",
        "--seed",
        "5",
        "--only",
        "run",
    ]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    assert "6 events: nothing false called complete" in ended.stdout
