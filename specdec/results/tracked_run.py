"""Which run of a tracker a folder is: a moved folder goes on with its run, a copy is another."""

import secrets
from pathlib import Path

from specdec.core.jsonl import make_folder
from specdec.core.vouching import read_note, write_note

NAME = ".tracked.json"


def run_id(folder: Path) -> str:
    """Return the id that is kept in a folder, or one that is new.

    A copy of a folder has its files but not its inode.

    Raises:
        Unwritable: a new id could not be written.
    """
    make_folder(folder)
    inode = folder.stat().st_ino
    known = read_note(folder / NAME) or {}
    if known.get("folder") == inode and isinstance(known.get("id"), str):
        return known["id"]
    new = secrets.token_hex(6)
    write_note(folder / NAME, {"id": new, "folder": inode})
    return new
