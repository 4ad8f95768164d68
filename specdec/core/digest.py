"""What files hold, in a few digits: results belong to the very files that they came from.

Every byte counts. A file is read once and its digest remembered, in this process and, of large
files, on the disk, for as long as its path, size, times and inode stay what they are.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from specdec.core.cache_folder import cache_folder
from specdec.core.jsonl import sealed, unsealed

LENGTH = 16  # hexadecimal digits
LARGE = 1 << 22  # bytes, from which reading a file again costs more than looking it up
# Right behind a change the clock of a file system may not tell the next one from it.
SETTLED = 2.0  # seconds
# What lies beside weights and decides no number: cards, licences, states to go on training from.
DOCUMENTS = ("readme", "license", "notice", "use_policy")
LEFT_OUT = (".", "checkpoint", "__pycache__")  # how the names of other files and folders begin

Signature = tuple[str, int, int, int, int, int]
_known: dict[Signature, str] = {}


def digest_of(content: bytes) -> str:
    """Return 16 hexadecimal digits that tell contents apart."""
    return hashlib.sha256(content).hexdigest()[:LENGTH]


def digest(path: Path) -> str:
    """Return the digest of a file's content and kind, or of a folder's files and their names.

    Where it lies does not matter, nor does how the path is written: an equal copy has the same
    digest. The kind, `.txt` or `.jsonl`, says how a file is read. Of a folder hidden files, cards,
    licences and checkpoints to go on training from are left out; of a run directory all but the
    traces, since nothing else of it is ever decoded with.

    Raises:
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        return _combined([f"{path.suffix.lower()} {_file_digest(path)}"])
    files = list(inputs_of(path))
    return _combined(
        [f"{file.relative_to(path).as_posix()} {_file_digest(file)}" for file in files]
    )


def inputs_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that decide numbers, in the order of their names."""
    if (folder / "traces.jsonl").is_file() and (folder / "status.json").is_file():
        yield folder / "traces.jsonl"
        return
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        left_out = any(part.startswith(LEFT_OUT) for part in parts)
        if not left_out and file.stem.lower() not in DOCUMENTS and file.is_file():
            yield file


def signature(path: Path) -> tuple[Signature, ...]:
    """Return what changes when a file changes, or one of a folder's, without reading any."""
    return tuple(map(_signature, inputs_of(path) if path.is_dir() else [path]))


def _combined(parts: Sequence[str]) -> str:
    return digest_of("\n".join(parts).encode("utf-8", "surrogateescape"))


def _signature(file: Path) -> Signature:
    # A weight file in the cache of the Hub is a link: its target is what counts.
    known = file.stat()
    place = os.path.realpath(file)
    return (place, known.st_size, known.st_mtime_ns, known.st_ctime_ns, known.st_ino, known.st_dev)


def _file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, from memory where it has not changed since."""
    before = _signature(file)
    found = _known.get(before) or _looked_up(before)
    if found is None:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        settled = time.time() - max(before[2], before[3]) / 1e9 > SETTLED
        if not settled or _signature(file) != before:
            return found
        _note(before, found)
    _known[before] = found
    return found


def _memory(key: Signature) -> Path:
    return cache_folder("digests") / digest_of(repr(key).encode("utf-8", "surrogateescape"))


def _looked_up(key: Signature) -> str | None:
    if key[1] < LARGE:
        return None
    try:
        noted = unsealed(json.loads(_memory(key).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None
    good = noted.get("of") == list(key)
    return str(noted["sha256"]) if good and len(str(noted.get("sha256"))) == 64 else None


def _note(key: Signature, found: str) -> None:
    """Remember a large file for other processes; where that cannot be, it is read again."""
    if key[1] < LARGE:
        return
    place = _memory(key)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(sealed({"of": key, "sha256": found})), encoding="utf-8")
        os.replace(temporary, place)
    except OSError:
        return
