"""Whether a folder has the files of a model, whole as far as sizes tell: nothing is loaded."""

import json
import struct
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError

# As transformers look for them. Others (adapters, quantised files) are left to transformers.
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "adapter_config.json")
TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "merges.txt", "*.tiktoken", "tekken.json")


def require_files(called: str, folder: Path) -> None:
    """Refuse a folder without weights or tokenizer, or with half of either.

    Raises:
        UserError: the message begins with `called`.
    """
    for index in INDICES:
        if (folder / index).is_file():
            lost = [
                name for name in _shards(called, folder / index) if not (folder / name).is_file()
            ]
            if lost:
                raise UserError(f"{called}: {', '.join(lost)} is missing in that folder")
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise UserError(f"{called}: no weights in that folder, model.safetensors")
    for file in folder.glob("*.safetensors"):
        _require_whole(called, file)
    if not any(file for pattern in TOKENIZERS for file in folder.glob(pattern)):
        raise UserError(f"{called}: no tokenizer in that folder, tokenizer.json")


def _shards(called: str, index: Path) -> list[str]:
    try:
        placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(placed.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{called}: {index.name} is damaged ({type(error).__name__})") from None


def _require_whole(called: str, file: Path) -> None:
    """Compare a file's size with where its header says that the last tensor ends."""
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            size = file.stat().st_size
            header: dict[str, Any] = json.loads(content.read(length)) if length < size else {}
        ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
        whole = bool(ends) and size == 8 + length + max(ends)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        whole = False
    if not whole:
        raise UserError(f"{called}: {file.name} is damaged or not wholly there; fetch it again")
