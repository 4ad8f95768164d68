"""What stands beside trained weights: for how long they were trained.

Tokens are those that were read as targets: the counted tokens of the samples of every step, over
all processes, repeated ones each time. A `share` below 1 computes the loss of fewer, and heads look
further ahead than one token; neither changes the number, which says how much text was seen.
"""

from pathlib import Path

from specdec.core.vouching import TRAINED, changed, decisive, read_note, vouch, write_note


def write_trained(folder: Path, steps: int, tokens: int) -> None:
    """Note the optimizer's steps and the tokens that were read as targets, and vouch for both."""
    files = vouch(folder, decisive(folder))
    write_note(folder / TRAINED, {"steps": steps, "tokens": tokens, "files": files})


def training_tokens(folder: Path) -> int | None:
    """Return how many tokens were read to train a folder's weights, if it says so and is whole."""
    return _number(folder, "tokens")


def training_steps(folder: Path) -> int | None:
    """Return for how many optimizer steps a folder was trained, if it says so and is whole."""
    return _number(folder, "steps")


def _number(folder: Path, name: str) -> int | None:
    note = read_note(folder / TRAINED) or {}
    if changed(folder, note.get("files") or {}):
        return None
    return int(note[name]) if isinstance(note.get(name), int) else None
