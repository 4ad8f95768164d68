"""Writes a folder of texts, shard by shard: after a kill at any moment it can be resumed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from specdec.core.errors import Unwritable, UserError, require_int
from specdec.core.jsonl import make_folder, write_bytes
from specdec.core.sampling import Sampling
from specdec.core.trace import TextKey
from specdec.core.vouching import write_note
from specdec.decoding.stopping import Stopping
from specdec.recording.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    differing_settings,
    read_manifest,
    refusal,
)
from specdec.recording.scoring import Scored
from specdec.recording.shard import packed, read_shard

SHARD_TOKENS = 1 << 16  # what a kill may cost; 34 MB with 64 log-probabilities a token


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
        self._manifest = Manifest(
            dict(verifier_fingerprint),
            sampling.to_row(),
            stopping.max_new_tokens,
            tuple(sorted(stopping.end_ids)),
            stopping.stop_strings,
            top_k,
            source,
        )
        if (folder / MANIFEST).exists():
            self._go_on(read_manifest(folder))
        else:
            self._require_no_model()
            self._write_manifest(self._manifest)

    def _require_no_model(self) -> None:
        """Refuse to write between the files of a model, which would be another one then."""
        found = [path.name for path in self.folder.glob("*.safetensors")]
        found = [name for name in found if not name.startswith("shard-")]
        found += ["config.json"] if (self.folder / "config.json").exists() else []
        if found:
            raise refusal(
                self.folder, f"holds {found[0]} of something else; expected an empty folder"
            )

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

    def flush(self) -> None:
        """Write what waits, so that it need not come again.

        Raises:
            UserError: the folder cannot be written.
        """
        if self._waiting:
            self._write_shard()

    def close(self) -> None:
        """Write what waits, and say in the manifest that this is all.

        Raises:
            UserError: the folder cannot be written.
        """
        self.flush()
        self._write_manifest(replace(self._manifest, complete=True))

    def _go_on(self, theirs: Manifest) -> None:
        differing = differing_settings(theirs, self._manifest)
        if differing:
            raise refusal(
                self.folder,
                f"begun with other settings ({', '.join(differing)}); choose those, or another"
                " folder",
            )
        for shard in theirs.shards:
            self.done |= {each.text.key for each in read_shard(self.folder, shard, theirs.top_k)}
        self._manifest = theirs

    def _write_shard(self) -> None:
        """Write what waits: first the shard, then the manifest, without which it does not count."""
        content = packed(self._waiting)
        name = _free_name(self._manifest)
        with _writing(self.folder):
            write_bytes(self.folder / name, content)
        digest = sha256(content).hexdigest()
        shard = Shard(name, digest, len(content), len(self._waiting), self._num_waiting)
        listed = sorted((*self._manifest.shards, shard), key=lambda each: each.file)
        self._write_manifest(replace(self._manifest, shards=tuple(listed)))
        self._waiting, self._num_waiting = [], 0

    def _write_manifest(self, manifest: Manifest) -> None:
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
        raise Unwritable(str(refusal(folder, what))) from None


def _free_name(manifest: Manifest) -> str:
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
        manifest = read_manifest(folder)
    except UserError as error:
        with _writing(folder):
            (folder / MANIFEST).unlink()
        return [str(error)]
    whole: list[Shard] = []
    found: list[str] = []
    for shard in manifest.shards:
        try:
            read_shard(folder, shard, manifest.top_k)
        except UserError as error:
            found.append(str(error))
        else:
            whole.append(shard)
    if found:
        with _writing(folder):
            kept = replace(manifest, shards=tuple(whole), complete=False)
            write_note(folder / MANIFEST, kept.to_row())
    return found
