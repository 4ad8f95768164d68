"""A folder of texts of a verifier, with what it found of each token: replay then needs no verifier.

`manifest.json` says what the texts are and lists the shards, `shard-00000.safetensors` and so on,
each of whole texts whose tokens stand one after another, with offsets. A shard that the manifest
does not list is not there; so a kill at any moment leaves a recording that can be resumed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from specdec.core.protocols import CausalLM
from specdec.core.sampling import Sampling
from specdec.core.trace import TextKey
from specdec.decoding.stopping import Stopping, TextModel
from specdec.lm.fingerprint import differences
from specdec.lm.generation import heeded
from specdec.recording.manifest import PLUG_INS, read_manifest, refusal
from specdec.recording.scoring import Scored
from specdec.recording.shard import read_shard
from specdec.recording.texts import Text


@dataclass(frozen=True)
class Recording:
    """Texts of a verifier, and how they were made.

    Args:
        folder: where it lies.
        verifier: whose texts they are, as `specdec.lm.fingerprint` says.
        sampling: as `Sampling.to_row` has it, with what the checkpoint asked for.
        max_new_tokens, end_ids, stop_strings: what ended the texts.
        top_k: K, how many log-probabilities are kept of each token.
        source: where the texts come from.
        scored: texts of T tokens, with `log_p` [T] and the K likeliest [T, K], in nats.
    """

    folder: Path
    verifier: Mapping[str, str]
    sampling: Mapping[str, Any]
    max_new_tokens: int
    end_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    top_k: int
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
        """Whether all distributions can be rebuilt, so that no rule needs the verifier."""
        return all(each.has_rows for each in self.scored)

    def sampling_of(self, verifier: CausalLM) -> Sampling:
        """Return what the texts were drawn with, but for processors of the user's own."""
        row = {name: value for name, value in self.sampling.items() if name != PLUG_INS}
        return heeded(Sampling(**row), verifier, self.end_ids)

    def stopping_of(self, verifier: TextModel) -> Stopping:
        """Return what ended the texts."""
        reading = verifier.decode, verifier.show
        return Stopping(self.max_new_tokens, self.end_ids, self.stop_strings, *reading)

    def top(self, text: Text) -> Scored:
        """Return what was found of one of the texts."""
        return self._by_key[text.key]

    def rows(self, text: Text, vocab_size: int) -> Tensor | None:  # [T, V] float32
        """Return the distributions that a text was drawn from, if they were kept whole."""
        return self.top(text).rows(vocab_size)

    @cached_property
    def _by_key(self) -> dict[TextKey, Scored]:
        return {each.text.key: each for each in self.scored}


def read_recording(folder: Path) -> Recording:
    """Read a recording that is complete and as it was written.

    Raises:
        UserError: there is none; it was interrupted, is damaged, or is of another version.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise refusal(folder, "interrupted; the same record command goes on")
    shards = [read_shard(folder, shard, manifest.top_k) for shard in manifest.shards]
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
    """Refuse texts of another distribution, wherever the verifier lies and whatever its dtype.

    `sampling` is as `heeded` returns it; None: any will do.

    Raises:
        UserError: configuration, tokenizer or weights differ, or the temperature or a filter.
    """
    known = recording.verifier
    differing = differences(fingerprint, known)
    if differing:
        raise refusal(
            recording.folder,
            f"texts of another verifier, {known.get('path')!r} ({', '.join(differing)} differ):"
            " texts of another distribution cannot be replayed; record them anew",
        )
    if sampling is None:
        return
    theirs, ours = recording.sampling, sampling.to_row()
    unlike = [name for name in ours if theirs.get(name) != ours[name]]
    if unlike:
        named = ", ".join(f"sampling.{name}={theirs.get(name)}" for name in unlike)
        raise refusal(
            recording.folder,
            f"texts at {named}, and this is {', '.join(str(ours[name]) for name in unlike)}: texts"
            " of another distribution cannot be replayed; record them anew",
        )
