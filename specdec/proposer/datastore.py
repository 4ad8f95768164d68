"""Texts on the disk in which any sequence of tokens is found at once, however large they are.

A folder: `tokens.bin` holds the texts one behind the other, `suffixes.bin` the order of their
suffixes, both read where they lie (memory-mapped), and `datastore.json` what they are. They are
sorted in shards, so that what is built needs the memory of one shard and not of the whole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import make_folder, replacing_file
from specdec.core.vouching import changed, read_note, vouch, write_note
from specdec.proposer.lookup import Matched, Place
from specdec.proposer.suffix_array import Tokens, bounds, sorted_suffixes

TOKENS, SUFFIXES, CARD = "tokens.bin", "suffixes.bin", "datastore.json"
KIND = np.dtype("<i4")  # of both files
END = -1  # between two texts; nothing that is looked for has it
SORTED_BY = 64  # tokens: no match is longer
SHARD = 1 << 24  # tokens
MOST_READ = 64  # occurrences of a match, evenly among all of them


class _Shard(NamedTuple):
    token_ids: Tokens
    suffixes: NDArray[np.int32]  # places within the shard

    def bounds(self, wanted: Sequence[int]) -> tuple[int, int]:
        return bounds(self.token_ids, self.suffixes, wanted)

    def longest(self, text: Sequence[int], least: int) -> int:
        """Return how many tokens of the end of a text occur; 0: fewer than `least`."""
        low, high = least - 1, min(SORTED_BY, len(text))  # if n tokens occur, so do fewer
        while low < high:
            middle = (low + high + 1) // 2
            first, last = self.bounds(text[len(text) - middle :])
            low, high = (middle, high) if last > first else (low, middle - 1)
        return low if low >= least else 0


@dataclass(frozen=True)
class Datastore:
    """The texts of a folder, to be looked up."""

    shards: Sequence[_Shard]
    tokenizer_digest: str

    @classmethod
    def open(cls, path: str | None, field: str) -> "Datastore":
        """Open a folder that `write_datastore` wrote; `field` is how complaints name it.

        Raises:
            UserError: it is none, or not as it was written.
        """
        expected = "a datastore, as scripts/build_datastore.py writes it"
        require(isinstance(path, str) and bool(path), field, path, expected)
        folder = Path(str(path))
        if not (folder / CARD).is_file():
            raise UserError(f"{field}={path!r}: no {CARD} in that folder; expected {expected}")
        card = read_note(folder / CARD) or {}
        whole = {"files", "shards", "tokenizer"} <= card.keys()
        wrong = changed(folder, card["files"]) if whole else [f"{CARD} is not as it was written"]
        if wrong:
            raise UserError(f"{field}={path!r}: damaged ({'; '.join(wrong)}); build it anew")
        token_ids, suffixes = (_mapped(folder / name) for name in (TOKENS, SUFFIXES))
        ends: list[int] = card["shards"]
        parts = zip([0, *ends[:-1]], ends, strict=True)
        shards = [_Shard(token_ids[a:b], suffixes[a:b]) for a, b in parts]
        return cls(shards, str(card["tokenizer"]))

    def find(self, text: Sequence[int], least: int, depth: int) -> Matched | None:
        """Find the longest end of a text, of `least` tokens or more, and what follows it there.

        Continuations are `depth` tokens long; of a frequent match some are read, evenly spread.
        """
        if len(text) < least or least > SORTED_BY:
            return None
        lengths = [shard.longest(text, least) for shard in self.shards]
        length = max(lengths, default=0)
        if not length:
            return None
        rows = [
            _continuations(shard, text[len(text) - length :], depth)
            for shard, longest in zip(self.shards, lengths, strict=True)
            if longest == length
        ]
        return Matched(length, _Continuations(np.concatenate(rows)))


def _continuations(shard: _Shard, wanted: Sequence[int], depth: int) -> Tokens:  # [n, depth]
    first, last = shard.bounds(wanted)
    number = min(MOST_READ, last - first)
    some = first + (np.arange(number) * (last - first)) // number
    starts = np.sort(shard.suffixes[some].astype(np.int64)) + len(wanted)
    places = starts[:, None] + np.arange(depth)
    inside = places < len(shard.token_ids)
    read = shard.token_ids[np.minimum(places, len(shard.token_ids) - 1)]
    return np.where(inside, read, END).astype(np.int32)


@dataclass(frozen=True)
class _Continuations:
    rows: Tokens  # [n, D]: what follows, each in a row of its own

    def goes_on(self) -> list[tuple[int, int, Place]]:
        if not self.rows.shape[1]:
            return []
        following = self.rows[:, 0]
        tokens, firsts, often = np.unique(following, return_index=True, return_counts=True)
        order = sorted(range(len(tokens)), key=lambda each: (-often[each], firsts[each]))
        return [
            (int(tokens[n]), int(often[n]), _Continuations(self.rows[following == tokens[n], 1:]))
            for n in order
            if tokens[n] != END
        ]


def write_datastore(
    texts: Iterable[Sequence[int]], folder: Path, tokenizer_digest: str, shard: int = SHARD
) -> int:
    """Sort texts into a folder; returns how many tokens they have.

    Tokens are written as they come, and sorted shard by shard. What lies in the folder is a
    datastore once `datastore.json` is there, which is written last.

    Args:
        texts: token ids, each text by itself; matches do not reach from one into the next.
        folder: is made, if it is not there.
        tokenizer_digest: of what made the tokens; see `specdec.lm.fingerprint.tokenizer_digest`.
        shard: tokens that are sorted at once, which takes about 40 bytes of memory for each.

    Raises:
        UserError: there are no tokens, or the folder cannot be written.
    """
    require_int("shard", shard, 2)
    make_folder(folder)
    (folder / CARD).unlink(missing_ok=True)
    with replacing_file(folder / TOKENS) as place, place.open("wb") as file:
        num_tokens = sum(_write(file, [*text, END]) for text in texts if len(text))
        if not num_tokens:
            raise UserError("the texts hold no tokens; expected some to look up")
    token_ids = _mapped(folder / TOKENS)
    ends = [*range(shard, num_tokens, shard), num_tokens]
    with replacing_file(folder / SUFFIXES) as place, place.open("wb") as file:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            _write(file, sorted_suffixes(token_ids[start:end], SORTED_BY))
    files = vouch(folder, [TOKENS, SUFFIXES])
    about = {"num_tokens": num_tokens, "shards": ends, "tokenizer": tokenizer_digest}
    write_note(folder / CARD, {**about, "files": files})
    return num_tokens


def _write(file: BinaryIO, numbers: ArrayLike) -> int:
    found = np.asarray(numbers, dtype=KIND)
    file.write(found.tobytes())
    return len(found)


def _mapped(path: Path) -> NDArray[np.int32]:
    return np.memmap(path, dtype=KIND, mode="r")
