"""A few of the events of `disturbances.py`, which takes minutes for a hundred of them."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("disturbances.py")


def test_a_few_disturbances() -> None:
    """In a process of its own: whoever forks must have no threads."""
    command = [sys.executable, str(SCRIPT), "--events", "6", "--seed", "5", "--only", "run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "6 events: nothing false called complete" in ended.stdout
