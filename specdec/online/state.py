"""What a run keeps of its learner, in one file: whole, or not there."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specdec.core.errors import UserError
from specdec.core.jsonl import write_bytes
from specdec.core.trace import PromptKey


class Kept(NamedTuple):
    """A learner's state, the run that it is of, and the prompts that it has learned from."""

    learner: dict[str, Any]
    run: str  # identity
    prompts: tuple[PromptKey, ...]  # in order


def write_state(file: Path, learner: dict[str, Any], run: str, done: Sequence[PromptKey]) -> None:
    """Write a state in place of the one before.

    Raises:
        Unwritable: it could not be written; the one before is untouched.
    """
    written = io.BytesIO()
    torch.save({"learner": learner, "run": run, "prompts": [list(key) for key in done]}, written)
    write_bytes(file, written.getvalue())


def read_state(file: Path) -> Kept:
    """Read what `write_state` wrote.

    Raises:
        UserError: there is nothing of the kind.
    """
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
        prompts = tuple((str(name), int(sample)) for name, sample in found["prompts"])
        return Kept(found["learner"], str(found["run"]), prompts)
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ):
        raise UserError(f"{file}: no state of a learner") from None
