"""The console scripts, one for each command: `specdec-compare` and `specdec compare` call these."""

import sys
from pathlib import Path

from specdec.command.launch import run

TAKE_A_FOLDER = ("--config-dir", "-cd", "--config-path", "-cp")  # flags, whose next word is theirs


def calibrate() -> None:
    """Measure which tree to grow."""
    run("calibrate")


def check() -> None:
    """Test whether runs are lossless."""
    run("check")


def compare() -> None:
    """Compare proposers, trees and rules on the same prompts."""
    run("compare")


def costs() -> None:
    """Measure what steps cost."""
    run("costs")


def decode() -> None:
    """Decode prompts with one arm, or sweep over options."""
    run("decode")


def describe() -> None:
    """Say what a model takes in memory, and what fits it."""
    run("describe")


def explain() -> None:
    """Tell one text step by step."""
    run("explain")


def record() -> None:
    """Record texts for replay."""
    run("record")


def replay() -> None:
    """Compute acceptance from a recording."""
    run("replay")


def report() -> None:
    """Report a folder of runs, which may be named without `run=`."""
    pairs = zip(sys.argv, sys.argv[1:], strict=False)
    sys.argv[1:] = [
        f"run={_quoted(text)}" if before not in TAKE_A_FOLDER and _is_folder(text) else text
        for before, text in pairs
    ]
    run("report")


def train() -> None:
    """Train heads, a draft model or a language model."""
    run("train")


def _is_folder(text: str) -> bool:
    return Path(text).is_dir() or not ("=" in text or text.startswith("-"))


def _quoted(text: str) -> str:
    """Quote a value for Hydra, in whose grammar commas and spaces mean something."""
    return "'" + text.replace("'", "\\'") + "'"
