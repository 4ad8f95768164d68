"""Hidden states on disk: computed once, read by every later epoch and every run of a sweep."""

import itertools
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.jsonl import make_folder, write_json, writing
from specdec.training.data.manifest import differences


class StateCache:
    """The verifier's last hidden states of every sample of a data file, in one memory-mapped file.

    A sample's states are written when they are first asked for; `sums` has their checksum, or 0,
    and what is not as it says is computed again. The folder belongs to one verifier and one data
    file, which `manifest.json` names.

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
        self._prepare(identity)
        num_tokens = self._starts[-1]
        size = num_tokens * hidden_size
        self._reserve("states.bin", size * dtype.itemsize)
        self._reserve("sums.bin", len(lengths) * torch.int64.itemsize)
        self._states = self._mapped("states.bin", size, dtype).view(num_tokens, hidden_size)
        self._sums = self._mapped("sums.bin", len(lengths), torch.int64)
        self._checked: set[int] = set()

    def _prepare(self, identity: Mapping[str, object]) -> None:
        """Claim the folder, or make sure that it is ours."""
        make_folder(self._folder)
        path = self._folder / "manifest.json"
        if not path.exists():
            write_json(path, identity)
        differing = differences(path, identity)
        if differing:
            raise UserError(
                f"data.cache_path={str(self._folder)!r}: holds the states of something else"
                f" ({', '.join(differing)} differ); choose another folder, or delete it"
            )

    def _reserve(self, name: str, num_bytes: int) -> None:
        """Take the room on the disk now: a full disk could not be told from a crash later."""
        path = self._folder / name
        if path.exists() and path.stat().st_size == num_bytes:
            return
        with writing(self._folder), path.open("ab") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
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
        if place not in self._checked and self._sums[place] == _checksum(self.read(place)):
            self._checked.add(place)
        return place in self._checked

    def read(self, place: int) -> Tensor:  # [T, H]
        """Return a sample's states."""
        return self._states[self._starts[place] : self._starts[place + 1]]

    def write(self, place: int, states: Tensor) -> None:  # [T, H]
        """Store a sample's states; their checksum is set behind them."""
        self.read(place).copy_(states)
        self._sums[place] = _checksum(self.read(place))
        self._checked.add(place)


def _checksum(states: Tensor) -> int:
    """Return a number that no states have in vain: it is never 0."""
    return 1 + zlib.crc32(states.view(torch.uint8).numpy().data)
