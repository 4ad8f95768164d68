"""A folder of texts of a verifier, with what it found of each token: replay then needs no verifier.

`manifest.json` says what the texts are and lists the shards, `shard-00000.safetensors` and so on,
each of whole texts whose tokens stand one after another, with offsets. A shard that the manifest
does not list is not there; so a kill at any moment leaves a recording that can be resumed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from hashlib import file_digest, sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from specdec.core.errors import Unwritable, UserError, require_int
from specdec.core.jsonl import make_folder, unsealed, write_bytes
from specdec.core.sampling import Sampling
from specdec.core.trace import TextKey
from specdec.core.vouching import write_note
from specdec.decoding.stopping import Stopping, TextModel
from specdec.lm.fingerprint import differences
from specdec.recording.scoring import Scored
from specdec.recording.texts import Text

VERSION = 2
MANIFEST = "manifest.json"
SHARD_TOKENS = 1 << 16  # what a kill may cost; 34 MB with 64 log-probabilities a token
FACTS = ("prompt_id", "category", "turn", "sample", "finish_reason", "budget")  # of a text
SETTINGS = ("max_new_tokens", "end_ids", "stop_strings", "top_k", "source")  # of all texts
OF_TOKENS = ("output_ids", "log_p", "top_ids", "top_log_p", "logsumexp")
PLUG_INS = "processors"  # of a sampling: only described
TENSORS = ("prompt_ids", "prompt_offsets", "output_offsets", *OF_TOKENS)


@dataclass(frozen=True)
class _Shard:
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
class _Manifest:
    verifier: Mapping[str, str]
    sampling: Mapping[str, Any]
    max_new_tokens: int
    end_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    top_k: int
    source: str
    shards: tuple[_Shard, ...] = ()
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
    def from_row(cls, row: Mapping[str, Any]) -> "_Manifest":
        """Read what `to_row` wrote; KeyError, TypeError or ValueError where it did not."""
        known = {field.name: row[field.name] for field in fields(cls)}
        known["verifier"] = dict(known["verifier"])
        known["sampling"] = dict(known["sampling"])
        Sampling(**{name: value for name, value in known["sampling"].items() if name != PLUG_INS})
        known["shards"] = tuple(_Shard(**each) for each in known["shards"])
        known |= {name: tuple(known[name]) for name in ("end_ids", "stop_strings")}
        Stopping(known["max_new_tokens"], frozenset(known["end_ids"]))
        found = cls(**known)
        if (found.num_texts, found.num_tokens) != (row["num_texts"], row["num_tokens"]):
            raise ValueError("the totals are not those of the shards")
        return found


def _read_manifest(folder: Path) -> _Manifest:
    if not (folder / MANIFEST).is_file():
        raise _refusal(folder, f"no {MANIFEST} in that folder; expected a recording")
    try:
        row = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = row["version"]
        found = _Manifest.from_row(unsealed(row)) if version == VERSION else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _refusal(folder, f"{MANIFEST} is damaged ({_said(error)}); record anew") from None
    if found is None:
        raise _refusal(folder, f"version {version}, and this reads version {VERSION}; record anew")
    return found


def _refusal(folder: Path, what: str) -> UserError:
    return UserError(f"recording={str(folder)!r}: {what}".replace("\n", " "))


def _said(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


# --- Writing ---


class RecordingWriter:
    """A recording in the making; one that was interrupted goes on behind its last shard.

    `done` are the texts, by their keys, that need not come again. A shard is written as
    soon as texts of `shard_tokens` tokens wait for it; those that wait are lost without `close`.

    Raises:
        UserError: the folder has texts of another verifier, sampling or source, or with other
            settings; or it is damaged, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        verifier_fingerprint: Mapping[str, str],
        sampling: Sampling,
        stopping: Stopping,
        top_k: int,
        source: str,
        shard_tokens: int = SHARD_TOKENS,
    ):
        require_int("top_k", top_k, 0)
        require_int("shard_tokens", shard_tokens, 1)
        self.folder = folder
        self.done: set[TextKey] = set()
        self._shard_tokens = shard_tokens
        self._waiting: list[Scored] = []
        self._num_waiting = 0  # tokens
        self._manifest = _Manifest(
            dict(verifier_fingerprint),
            sampling.to_row(),
            stopping.max_new_tokens,
            tuple(sorted(stopping.end_ids)),
            stopping.stop_strings,
            top_k,
            source,
        )
        if (folder / MANIFEST).exists():
            self._go_on(_read_manifest(folder))
        else:
            self._write_manifest(self._manifest)

    def add(self, scored: Scored) -> None:
        """Take up a text that is not in `done`.

        Raises:
            UserError: a shard was due, and could not be written.
        """
        num_tokens = len(scored.text.output_ids)
        assert scored.text.key not in self.done, f"twice: {scored.text.key}"
        assert len(scored.text.log_p) == num_tokens, "not scored"
        assert scored.top_ids.shape == (num_tokens, self._manifest.top_k), "another top_k"
        if self._manifest.complete:
            self._write_manifest(replace(self._manifest, complete=False))
        self.done.add(scored.text.key)
        self._waiting.append(scored)
        self._num_waiting += num_tokens
        if self._num_waiting >= self._shard_tokens:
            self._write_shard()

    def close(self) -> None:
        """Write what waits, and say in the manifest that this is all.

        Raises:
            UserError: the folder cannot be written.
        """
        if self._waiting:
            self._write_shard()
        self._write_manifest(replace(self._manifest, complete=True))

    def _go_on(self, theirs: _Manifest) -> None:
        differing = _differences(theirs, self._manifest)
        if differing:
            raise _refusal(
                self.folder,
                f"begun with other settings ({', '.join(differing)}); choose those, or another"
                " folder",
            )
        for shard in theirs.shards:
            self.done |= {each.text.key for each in _read_shard(self.folder, shard, theirs.top_k)}
        self._manifest = theirs

    def _write_shard(self) -> None:
        """Write what waits: first the shard, then the manifest, without which it does not count."""
        content = _packed(self._waiting)
        name = _free_name(self._manifest)
        with _writing(self.folder):
            write_bytes(self.folder / name, content)
        digest = sha256(content).hexdigest()
        shard = _Shard(name, digest, len(content), len(self._waiting), self._num_waiting)
        listed = sorted((*self._manifest.shards, shard), key=lambda each: each.file)
        self._write_manifest(replace(self._manifest, shards=tuple(listed)))
        self._waiting, self._num_waiting = [], 0

    def _write_manifest(self, manifest: _Manifest) -> None:
        with _writing(self.folder):
            make_folder(self.folder)
            write_note(self.folder / MANIFEST, manifest.to_row())
        self._manifest = manifest


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a full disk into one line."""
    try:
        yield
    except Unwritable as error:
        what = f"{error}; once it can be, the same record command goes on"
        raise Unwritable(str(_refusal(folder, what))) from None


def _free_name(manifest: _Manifest) -> str:
    """Name the next shard; where a damaged one was taken off the list, it takes its place."""
    taken = {shard.file for shard in manifest.shards}
    names = (f"shard-{number:05d}.safetensors" for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def drop_damaged(folder: Path) -> list[str]:
    """Take off the list what is damaged, so that these texts are recorded again; say what it was.

    A manifest that cannot be read lists nothing. A recording that is whole is left alone.
    """
    if not (folder / MANIFEST).exists():
        return []
    try:
        manifest = _read_manifest(folder)
    except UserError as error:
        with _writing(folder):
            (folder / MANIFEST).unlink()
        return [str(error)]
    whole: list[_Shard] = []
    found: list[str] = []
    for shard in manifest.shards:
        try:
            _read_shard(folder, shard, manifest.top_k)
        except UserError as error:
            found.append(str(error))
        else:
            whole.append(shard)
    if found:
        with _writing(folder):
            kept = replace(manifest, shards=tuple(whole), complete=False)
            write_note(folder / MANIFEST, kept.to_row())
    return found


def _differences(theirs: _Manifest, ours: _Manifest) -> list[str]:
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


def _plain(manifest: _Manifest) -> dict[str, object]:
    sampling = {f"sampling.{name}": value for name, value in manifest.sampling.items()}
    return {**sampling, **{name: getattr(manifest, name) for name in SETTINGS}}


def _packed(scored: Sequence[Scored]) -> bytes:
    """Put texts into one file: tensors, and in its header whatever else is known of them."""
    texts = [each.text for each in scored]
    tensors = {
        "prompt_ids": _integers([token for text in texts for token in text.prompt_ids]),
        "prompt_offsets": _offsets([len(text.prompt_ids) for text in texts]),
        "output_ids": _integers([token for text in texts for token in text.output_ids]),
        "output_offsets": _offsets([len(text.output_ids) for text in texts]),
        "log_p": torch.tensor([each for text in texts for each in text.log_p], dtype=torch.float32),
        "top_ids": torch.cat([each.top_ids for each in scored]),
        "top_log_p": torch.cat([each.top_log_p for each in scored]),
        "logsumexp": torch.cat([each.logsumexp for each in scored]),
    }
    facts = [{name: getattr(text, name) for name in FACTS} for text in texts]
    # One entry: several would come in another order, and so with another checksum, every time.
    return save(tensors, {"texts": json.dumps(facts)})


def _integers(values: Sequence[int]) -> Tensor:  # [n] int32, or int64 where it takes that
    narrow = max(values, default=0) <= torch.iinfo(torch.int32).max
    return torch.tensor(values, dtype=torch.int32 if narrow else torch.int64)


def _offsets(lengths: Sequence[int]) -> Tensor:  # [n] -> [n + 1]
    return _integers([0, *accumulate(lengths)])


# --- Reading ---


@dataclass(frozen=True)
class Recording:
    """Texts of a verifier, and how they were made."""

    folder: Path
    verifier: Mapping[str, str]  # as `specdec.lm.fingerprint` has it
    sampling: Mapping[str, Any]  # as `Sampling.to_row` has it, with what the checkpoint asked for
    max_new_tokens: int
    end_ids: frozenset[int]  # the tokens that end a text
    stop_strings: tuple[str, ...]
    top_k: int  # K: log-probabilities that are kept of each token
    source: str
    scored: Sequence[Scored]

    @cached_property
    def texts(self) -> list[Text]:
        """The texts alone, in the order in which they were recorded."""
        return [each.text for each in self.scored]

    @cached_property
    def num_tokens(self) -> int:
        """How many tokens were emitted in all texts."""
        return sum(len(each.text.output_ids) for each in self.scored)

    @cached_property
    def has_rows(self) -> bool:
        """Whether the laws of all texts can be rebuilt, so that no rule needs the verifier."""
        return all(each.has_rows for each in self.scored)

    def stopping_of(self, verifier: TextModel) -> Stopping:
        """Return what ended the texts."""
        reading = verifier.decode, verifier.show
        return Stopping(self.max_new_tokens, self.end_ids, self.stop_strings, *reading)

    def top(self, text: Text) -> Scored:
        """Return what was found of one of the texts."""
        return self._by_key[text.key]

    def rows(self, text: Text, vocab_size: int) -> Tensor | None:  # [T, V] float32
        """Return the laws that a text was drawn from, if all of them was kept."""
        return self.top(text).rows(vocab_size)

    @cached_property
    def _by_key(self) -> dict[TextKey, Scored]:
        return {each.text.key: each for each in self.scored}


def read_recording(folder: Path) -> Recording:
    """Read a recording that is complete and as it was written.

    Raises:
        UserError: there is none; it was interrupted, is damaged, or is of another version.
    """
    manifest = _read_manifest(folder)
    if not manifest.complete:
        raise _refusal(folder, "interrupted; the same record command goes on")
    shards = [_read_shard(folder, shard, manifest.top_k) for shard in manifest.shards]
    return Recording(
        folder=folder,
        verifier=manifest.verifier,
        sampling=manifest.sampling,
        max_new_tokens=manifest.max_new_tokens,
        end_ids=frozenset(manifest.end_ids),
        stop_strings=manifest.stop_strings,
        top_k=manifest.top_k,
        source=manifest.source,
        scored=[scored for shard in shards for scored in shard],
    )


def require_made_for(
    recording: Recording, fingerprint: Mapping[str, str], sampling: Sampling | None
) -> None:
    """Refuse texts of another law, wherever the verifier lies and whatever its dtype.

    `sampling` is as `heeded` returns it; None: any will do.

    Raises:
        UserError: configuration, tokenizer or weights differ, or the temperature or a filter.
    """
    known = recording.verifier
    differing = differences(fingerprint, known)
    if differing:
        raise _refusal(
            recording.folder,
            f"texts of another verifier, {known.get('path')!r} ({', '.join(differing)} differ):"
            " texts of another law cannot be replayed; record them anew",
        )
    if sampling is None:
        return
    theirs, ours = recording.sampling, sampling.to_row()
    unlike = [name for name in ours if theirs.get(name) != ours[name]]
    if unlike:
        named = ", ".join(f"sampling.{name}={theirs.get(name)}" for name in unlike)
        raise _refusal(
            recording.folder,
            f"texts at {named}, and this is {', '.join(str(ours[name]) for name in unlike)}: texts"
            " of another law cannot be replayed; record them anew",
        )


def _read_shard(folder: Path, shard: _Shard, top_k: int) -> list[Scored]:
    """Read a shard, if it is what was written."""
    _check_file(folder, shard)
    try:
        with safe_open(str(folder / shard.file), framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in TENSORS}
            facts = json.loads(file.metadata()["texts"])
        _check_sizes(shard, top_k, tensors, facts)
        return _unpacked(tensors, facts)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        what = f"{shard.file} is not what {MANIFEST} lists ({_said(error)}); record anew"
        raise _refusal(folder, what) from None


def _check_file(folder: Path, shard: _Shard) -> None:
    path = folder / shard.file
    if not path.is_file():
        raise _refusal(folder, f"{shard.file} is missing; record anew")
    size = path.stat().st_size
    if size < shard.num_bytes:
        what = f"{shard.file} is truncated ({size} of {shard.num_bytes} bytes); record anew"
        raise _refusal(folder, what)
    with path.open("rb") as content:
        found = file_digest(content, "sha256").hexdigest()
    if found != shard.sha256:
        what = f"{shard.file} is damaged (sha256 {found[:16]}..., not {shard.sha256[:16]}...)"
        raise _refusal(folder, f"{what}; record anew")


def _check_sizes(
    shard: _Shard, top_k: int, tensors: Mapping[str, Tensor], facts: Sequence[object]
) -> None:
    """Compare a shard with what is listed of it; ValueError says what differs."""
    num_texts, num_tokens = shard.num_texts, shard.num_tokens
    sizes = {name: (num_tokens,) for name in OF_TOKENS}
    sizes |= dict.fromkeys(("top_ids", "top_log_p"), (num_tokens, top_k))
    sizes |= dict.fromkeys(("prompt_offsets", "output_offsets"), (num_texts + 1,))
    for name, size in sizes.items():
        if tensors[name].shape != size:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(size)}")
    for name in ("prompt", "output"):
        offsets = tensors[f"{name}_offsets"].tolist()
        ends = offsets[0], offsets[-1]
        if offsets != sorted(offsets) or ends != (0, len(tensors[f"{name}_ids"])):
            raise ValueError(f"{name}_offsets do not go through {name}_ids")
    if len(facts) != num_texts:
        raise ValueError(f"{len(facts)} texts, not {num_texts}")


def _unpacked(tensors: Mapping[str, Tensor], facts: Sequence[Mapping[str, Any]]) -> list[Scored]:
    prompt_ids = _split(tensors, "prompt_ids", "prompt_offsets")
    output_ids, log_p, *rest = (_split(tensors, name, "output_offsets") for name in OF_TOKENS)
    texts = [
        Text(
            prompt_ids=tuple(prompt_ids[number].tolist()),
            output_ids=tuple(output_ids[number].tolist()),
            log_p=tuple(log_p[number].tolist()),
            **fact,
        )
        for number, fact in enumerate(facts)
    ]
    return [Scored(text, *parts) for text, *parts in zip(texts, *rest, strict=True)]


def _split(tensors: Mapping[str, Tensor], name: str, offsets: str) -> list[Tensor]:
    """Give each text its part, without a copy."""
    return list(tensors[name].split(tensors[offsets].diff().tolist()))
