"""What stands beside trained weights: for how long they were trained."""

import json
from pathlib import Path

from specdec.core.jsonl import write_json

NAME = "training.json"


def write_facts(folder: Path, steps: int, tokens: int) -> None:
    """Note the optimizer's steps and the tokens whose loss was computed, repeated ones included."""
    write_json(folder / NAME, {"steps": steps, "tokens": tokens})


def training_tokens(folder: Path) -> int | None:
    """Return on how many tokens a folder's weights were trained, if it says so."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return int(found["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
