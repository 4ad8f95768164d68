"""What stands beside trained weights: for how long they were trained.

Tokens are those that were read as targets: the counted tokens of the samples of every step, over
all processes, repeated ones each time. A `share` below 1 computes the loss of fewer, and heads look
further ahead than one token; neither changes the number, which says how much text was seen.
"""

import json
from pathlib import Path

from specdec.core.jsonl import write_json

NAME = "training.json"


def write_facts(folder: Path, steps: int, tokens: int) -> None:
    """Note the optimizer's steps and the tokens that were read as targets."""
    write_json(folder / NAME, {"steps": steps, "tokens": tokens})


def training_tokens(folder: Path) -> int | None:
    """Return how many tokens were read to train a folder's weights, if it says so."""
    return _fact(folder, "tokens")


def training_steps(folder: Path) -> int | None:
    """Return how many optimizer steps a folder's weights were trained for, if it says so."""
    return _fact(folder, "steps")


def _fact(folder: Path, name: str) -> int | None:
    try:
        return int(json.loads((folder / NAME).read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None
