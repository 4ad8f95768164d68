"""Hidden states on disk: computed once, read by every later epoch and every run of a sweep."""

import itertools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec.core.errors import UserError
from specdec.core.jsonl import make_folder, writing
from specdec.core.vouching import read_note, write_note
from specdec.training.data.manifest import differences


class StateCache:
    """The verifier's hidden states of every sample of a data file, in one memory-mapped file.

    A sample's states are written when they are first asked for; `sums` has their checksum, or 0,
    and what is not as it says is computed again, with one warning. The folder belongs to one
    verifier and one data file, which `manifest.json` names; they are part of each checksum, so that
    states of others are never taken for these. Each sample is checked when it is first read, at a
    second or less a GB. Several processes may write the same states at once.

    Raises:
        UserError: the folder holds the states of something else, or the disk has no room for them.
    """

    def __init__(
        self,
        folder: str,
        lengths: Sequence[int],  # tokens of each sample
        hidden_size: int,
        dtype: torch.dtype,
        identity: Mapping[str, object],
    ):
        self._folder = Path(folder)
        self._starts = [0, *itertools.accumulate(lengths)]
        self._salt = zlib.crc32(json.dumps(identity).encode())
        self._has_warned = False
        is_new = not (self._folder / "manifest.json").exists()
        self._prepare(identity)
        num_tokens = self._starts[-1]
        size = num_tokens * hidden_size
        for name, num_bytes in (
            ("states.bin", size * dtype.itemsize),
            ("sums.bin", len(lengths) * torch.int64.itemsize),
        ):
            self._reserve(name, num_bytes, is_new)
        self._states = self._mapped("states.bin", size, dtype).view(num_tokens, hidden_size)
        self._sums = self._mapped("sums.bin", len(lengths), torch.int64)
        self._checked: set[int] = set()

    def _prepare(self, identity: Mapping[str, object]) -> None:
        """Claim the folder, or make sure that it is ours.

        A manifest that is not as it was written may be replaced: no checksum is of other states.
        """
        make_folder(self._folder)
        path = self._folder / "manifest.json"
        theirs = read_note(path)
        if theirs is None:
            if path.exists():
                self._warn(f"{path.name} is not as it was written")
            write_note(path, identity)
            return
        differing = differences(theirs, identity)
        if differing:
            raise UserError(
                f"data.cache_path={str(self._folder)!r}: holds the states of something else"
                f" ({', '.join(differing)} differ); choose another folder, or delete it"
            )

    def _warn(self, what: str) -> None:
        """Say once why states are computed that were there already."""
        if not self._has_warned:
            print(f"{self._folder}: {what}; such states are computed again", flush=True)
        self._has_warned = True

    def _reserve(self, name: str, num_bytes: int, is_new: bool) -> None:
        """Take the room on the disk now: a full disk could not be told from a crash later."""
        path = self._folder / name
        size = path.stat().st_size if path.exists() else None
        if size == num_bytes:
            return
        if not is_new:
            there = "is missing" if size is None else f"has {size} bytes of {num_bytes}"
            self._warn(f"{name} {there}")
        with writing(self._folder), path.open("ab") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
                file.truncate(num_bytes)
            except OSError as error:
                path.unlink()
                raise UserError(
                    f"data.cache_path={str(self._folder)!r}: no room for {num_bytes / 1e9:.1f} GB"
                    f" of hidden states ({error.strerror})"
                ) from None

    def _mapped(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(self._folder / name), shared=True, size=size, dtype=dtype)

    def missing(self, places: Sequence[int]) -> list[int]:
        """Return those of the samples at `places` that are not there yet."""
        return [place for place in places if not self._is_there(place)]

    def _is_there(self, place: int) -> bool:
        if place not in self._checked:
            noted = int(self._sums[place])  # once: another thread or process may be writing it
            if noted == self._checksum(place):
                self._checked.add(place)
            elif noted:
                self._warn(f"states of sample {place} are not as they were written")
        return place in self._checked

    def read(self, place: int) -> Tensor:  # [T, H]
        """Return a sample's states."""
        return self._states[self._starts[place] : self._starts[place + 1]]

    def batch(self, places: Sequence[int]) -> Tensor:  # [B, T, H]
        """Return a copy of the states of several samples, padded at the end."""
        return pad_sequence([self.read(place) for place in places], batch_first=True)

    def write(self, place: int, states: Tensor) -> None:  # [T, H]
        """Store a sample's states; their checksum is set behind them."""
        self.read(place).copy_(states)
        self._sums[place] = self._checksum(place)
        self._checked.add(place)

    def _checksum(self, place: int) -> int:
        """Return a number that no states have in vain: it is never 0."""
        states = self.read(place).view(torch.uint8).numpy()
        return 1 + zlib.crc32(states.data, self._salt)
