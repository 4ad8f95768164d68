"""What a folder of texts says of itself: `manifest.json`, with the settings and the shards."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.jsonl import unsealed
from specdec.core.sampling import Sampling
from specdec.decoding.stopping import Stopping

VERSION = 2
MANIFEST = "manifest.json"
SETTINGS = ("max_new_tokens", "end_ids", "stop_strings", "top_k", "source")  # of all texts
PLUG_INS = "processors"  # of a sampling: only described


@dataclass(frozen=True)
class Shard:
    file: str
    sha256: str
    num_bytes: int
    num_texts: int
    num_tokens: int

    def __post_init__(self) -> None:
        numbers = self.num_bytes, self.num_texts, self.num_tokens
        if not all(isinstance(each, int) for each in numbers) or not isinstance(self.file, str):
            raise TypeError(f"a shard of {numbers}")


@dataclass(frozen=True)
class Manifest:
    verifier: Mapping[str, str]
    sampling: Mapping[str, Any]
    max_new_tokens: int
    end_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    top_k: int
    source: str
    shards: tuple[Shard, ...] = ()
    complete: bool = False

    @property
    def num_texts(self) -> int:
        return sum(shard.num_texts for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    def to_row(self) -> dict[str, object]:
        totals = {"num_texts": self.num_texts, "num_tokens": self.num_tokens}
        return {"version": VERSION, **asdict(self), **totals}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Manifest":
        """Read what `to_row` wrote; KeyError, TypeError or ValueError where it did not."""
        known = {field.name: row[field.name] for field in fields(cls)}
        known["verifier"] = dict(known["verifier"])
        known["sampling"] = dict(known["sampling"])
        Sampling(**{name: value for name, value in known["sampling"].items() if name != PLUG_INS})
        known["shards"] = tuple(Shard(**each) for each in known["shards"])
        known |= {name: tuple(known[name]) for name in ("end_ids", "stop_strings")}
        Stopping(known["max_new_tokens"], frozenset(known["end_ids"]))
        found = cls(**known)
        if (found.num_texts, found.num_tokens) != (row["num_texts"], row["num_tokens"]):
            raise ValueError("the totals are not those of the shards")
        return found


def read_manifest(folder: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        raise refusal(folder, f"no {MANIFEST} in that folder; expected a recording")
    try:
        row = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = row["version"]
        found = Manifest.from_row(unsealed(row)) if version == VERSION else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise refusal(folder, f"{MANIFEST} is damaged ({reason_of(error)}); record anew") from None
    if found is None:
        raise refusal(folder, f"version {version}, and this reads version {VERSION}; record anew")
    return found


def refusal(folder: Path, what: str) -> UserError:
    return UserError(f"recording={str(folder)!r}: {what}".replace("\n", " "))


def reason_of(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def differing_settings(theirs: Manifest, ours: Manifest) -> list[str]:
    """Name the settings that differ; where a model lies is none."""
    names = sorted((theirs.verifier.keys() | ours.verifier.keys()) - {"path"})
    found = [
        f"verifier.{name}={theirs.verifier.get(name)}, not {ours.verifier.get(name)}"
        for name in names
        if theirs.verifier.get(name) != ours.verifier.get(name)
    ]
    his, mine = (_plain(manifest) for manifest in (theirs, ours))
    return found + [
        f"{name}={his[name]}, not {mine[name]}" for name in his if his[name] != mine[name]
    ]


def _plain(manifest: Manifest) -> dict[str, object]:
    sampling = {f"sampling.{name}": value for name, value in manifest.sampling.items()}
    return {**sampling, **{name: getattr(manifest, name) for name in SETTINGS}}
