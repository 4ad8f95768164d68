"""What was written is what is read: notes that vouch for themselves, and for the files beside them.

A note is a JSON object with a checksum of its own. In it stand digests of files; so one that was
cut, changed, or put there from elsewhere is found however it came about. Digests are of every byte,
and of large files remembered as long as size, times and inode are the same (see `digest`): about a
second for each GB that is looked at for the first time.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from specdec.core.digest import digest
from specdec.core.errors import UserError
from specdec.core.jsonl import sealed, unsealed, write_json

TRAINED = "training.json"  # beside trained weights


def write_note(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    write_json(path, sealed(value))


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the object of a JSON file; None where there is none, or it is not as it was written.

    Files without a checksum, which others have written, are believed.
    """
    try:
        return parse_note(path.read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError):
        return None


def parse_note(text: str) -> dict[str, Any]:
    """Return the object of a note, without its checksum.

    Raises:
        TypeError: it is no object.
        ValueError: it is no JSON, or has changed since it was written.
    """
    try:
        return unsealed(json.loads(text))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def vouch(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the digests of files, as far as they are there, by their names in `folder`."""
    return {name: digest(folder / name) for name in names if (folder / name).is_file()}


def changed(folder: Path, listed: Mapping[str, str]) -> list[str]:
    """Say of every file that is not as `vouch` found it what is wrong with it."""
    found: list[str] = []
    for name, known in listed.items():
        file = folder / name
        try:
            if not file.is_file():
                found.append(f"{name} is missing")
            elif digest(file) != known:
                found.append(f"{name} is not as it was written")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def require_as_trained(folder: Path, named: str) -> None:
    """Refuse weights that are not those that a training left beside its `training.json`.

    Other files may change: cards, say, or a tokenizer. A folder without that note is believed.

    Args:
        folder: what is loaded.
        named: how a message names it.

    Raises:
        UserError: weights, a configuration or the note are not as they were written.
    """
    if not (folder / TRAINED).is_file():
        return
    note = read_note(folder / TRAINED)
    if note is None:
        wrong = [f"{TRAINED} is not as it was written"]
    else:
        wrong = changed(folder, note.get("files") or {})
    if wrong:
        expected = f"what the training left (its command makes it again), or no {TRAINED} beside it"
        raise UserError(f"{named}: {wrong[0]}; expected {expected}")


def decisive(folder: Path) -> list[str]:
    """Return the names of a folder's weights and their configuration: what numbers come from."""
    return sorted(file.name for file in [*folder.glob("*.safetensors"), folder / "config.json"])
