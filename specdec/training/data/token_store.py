"""Token ids of all samples in a file that is mapped, a batch at a time: memory does not grow.

A folder holds `tokens.bin`, `starts.bin` and, written last, the note `facts.json`, which vouches
for them and says what they were made of, as the folder's name does: swapped folders are noticed.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.core.jsonl import make_folder, writing
from specdec.core.vouching import changed, read_note, vouch, write_note

TOKENS, STARTS, HEADER = "tokens.bin", "starts.bin", "facts.json"
HELD = 1 << 16  # tokens that wait to be written


class TokenStore:
    """Samples of token ids, each with a mark whether it counts.

    An id that does not count stands in the file as its complement, `~id`: one number tells both.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]):
        self._tokens = folder / TOKENS
        self.header = header
        starts = _mapped(folder / STARTS, np.int64, 0, header["num_samples"] + 1)
        self._starts = torch.from_numpy(starts)
        self.num_tokens: int = header["num_tokens"]

    @classmethod
    def open(cls, folder: Path) -> "TokenStore | None":
        """Return what is stored in a folder; None if nothing is, or it is not as it was written.

        All bytes are read the first time: about a second a GB.
        """
        header = read_note(folder / HEADER) or {}
        listed = header.get("files")
        if header.get("of") != folder.name or not isinstance(listed, dict):
            return None
        return None if changed(folder, listed) else cls(folder, header)

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return len(self._starts) - 1

    @property
    def lengths(self) -> Tensor:  # [N] int64
        """How many tokens each sample has."""
        return self._starts.diff()

    @property
    def digest(self) -> str:
        """Tell these samples from others."""
        return " ".join(self.header["files"].values())

    def sample(self, place: int) -> tuple[Tensor, Tensor]:
        """Return the token ids [T] int64 of a sample, and which of them count [T] bool."""
        start, end = self._starts[place : place + 2].tolist()
        stored = self[start:end]
        counted = stored >= 0
        return torch.where(counted, stored, ~stored), counted

    def __len__(self) -> int:
        """How many tokens there are, of all samples."""
        return self.num_tokens

    def __getitem__(self, span: slice) -> Tensor:  # [n] int64
        """Return a span of all tokens as they stand in the file.

        It is mapped anew each time: what was read before does not stay in memory.
        """
        start, end, _ = span.indices(self.num_tokens)
        return torch.from_numpy(self._stored(start, end).astype(np.int64))

    def pieces(self, size: int, more: int) -> Iterator[np.ndarray]:  # of [n] int32
        """Yield all token ids, `size` at a time and `more` of those behind, whether they count."""
        for start in range(0, self.num_tokens, size):
            stored = self._stored(start, min(start + size + more, self.num_tokens))
            yield stored ^ (stored >> 31)  # the complement of a complement

    def _stored(self, start: int, end: int) -> np.ndarray:
        return _mapped(self._tokens, np.int32, start, max(0, end - start))


class TokenWriter:
    """Writes a store; used as a context, at whose end it is whole.

    Raises:
        Unwritable: the disk is full, or refuses.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.num_tokens = 0
        self.num_counted = 0  # of which something is predicted: not the first of a sample
        self._starts = [0]
        self._held: list[np.ndarray] = []
        self._num_held = 0
        self.header: dict[str, Any] = {}

    def __enter__(self) -> "TokenWriter":
        shutil.rmtree(self._folder, ignore_errors=True)
        make_folder(self._folder)
        with writing(self._folder):
            self._file = (self._folder / TOKENS).open("wb")
        return self

    @property
    def num_samples(self) -> int:
        """How many samples there are by now."""
        return len(self._starts) - 1

    def add(self, token_ids: Sequence[int], counted: Sequence[bool]) -> None:
        """Add a sample."""
        ids = np.asarray(token_ids, dtype=np.int32)
        marks = np.asarray(counted, dtype=bool)
        self._hold(np.where(marks, ids, ~ids))
        self._starts.append(self.num_tokens)
        self.num_counted += int(marks[1:].sum())

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add tokens of a text that is cut into samples at the end, `cut`; all of them count."""
        self._hold(np.asarray(token_ids, dtype=np.int32))

    def cut(self, length: int, least: int) -> None:
        """Cut all that was added into samples of `length` tokens; the last has at least `least`."""
        starts = list(range(0, self.num_tokens, length))
        if starts and self.num_tokens - starts[-1] < least:
            starts.pop()
            self._starts = [*starts, len(starts) * length]
        else:
            self._starts = [*starts, self.num_tokens]
        self.num_counted = self._starts[-1] - self.num_samples

    def _hold(self, ids: np.ndarray) -> None:
        self._held.append(ids)
        self._num_held += len(ids)
        self.num_tokens += len(ids)
        if self._num_held > HELD:
            self._write()

    def _write(self) -> None:
        with writing(self._folder):
            self._file.write(b"".join(each.tobytes() for each in self._held))
        self._held, self._num_held = [], 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._file.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        self._write()
        with writing(self._folder):
            self._file.close()
            np.asarray(self._starts, dtype=np.int64).tofile(self._folder / STARTS)
        counts = {
            "of": self._folder.name,
            "files": vouch(self._folder, (TOKENS, STARTS)),
            "num_samples": self.num_samples,
            "num_tokens": self.num_tokens,
            "num_counted": self.num_counted,
        }
        write_note(self._folder / HEADER, {**self.header, **counts})


def _mapped(path: Path, kind: Any, start: int, number: int) -> np.ndarray:
    if not number:  # nothing cannot be mapped
        return np.zeros(0, dtype=kind)
    offset = start * np.dtype(kind).itemsize
    return np.memmap(path, dtype=kind, mode="c", offset=offset, shape=(number,))
