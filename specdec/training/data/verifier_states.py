"""What heads are trained on: token ids, and the verifier's hidden states along them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from specdec.core.errors import require, require_int
from specdec.core.protocols import SourceReader
from specdec.core.values import FINAL, Layer
from specdec.lm.cached_as import cached_like
from specdec.lm.fingerprint import DIGESTS, fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.runtime.choice import COMPILED, texts_of
from specdec.training.data.distill import Distill
from specdec.training.data.last_hidden import hidden_along, is_frozen, with_hidden
from specdec.training.data.overlap import RUN
from specdec.training.data.reading import Reading, Share, Source
from specdec.training.data.samples import Samples
from specdec.training.data.source_split import SourceSplit
from specdec.training.data.sources import Sources, require_untemplated
from specdec.training.data.state_cache import StateCache
from specdec.training.objective import Batch


@dataclass(frozen=True)
class _Data:
    """What is there once the files are read."""

    samples: Samples
    name: str  # of what is trained on
    held_out: Batch
    share: Share | None  # that is held out
    cache: StateCache | None
    notes: Sequence[str]


class VerifierStates:
    """Samples of a data file, and the frozen verifier that reads them; `prepare` comes first.

    With `cache_path` each sample is read once, by whichever run comes first. A verifier whose
    runtime is `compiled` reads training texts by a program, too. With `distill` the
    verifier answers the training data anew before they are read; held-out data stay as they are.
    `reading` is how both are read, and what is held out where `held_out_path` is None.

    Args:
        verifier: that reads them; it is frozen.
        data_path: a file, a data set, or `zoo:train`.
        held_out_path: the same, to evaluate on; None: a share of `data_path`.
        max_length: tokens of a sample, at most.
        eval_samples: that are evaluated on.
        cache_path: a folder for hidden states; None: they are computed each time.
        seed: of the order, and of the weights that training begins with.
        distill: has the verifier answer the data; None: as they are.
        reading: how rows become text.

    Raises:
        UserError: an option is out of its range, or the verifier is none whose states are read.
    """

    def __init__(
        self,
        verifier: HFCausalLM,
        data_path: str,
        held_out_path: str | None = None,
        max_length: int = 512,
        eval_samples: int = 32,
        cache_path: str | None = None,
        seed: int = 0,
        distill: Distill | None = None,
        reading: Reading | None = None,
    ):
        require_int("max_length", max_length, 2)
        require_int("eval_samples", eval_samples, 1)
        require_int("seed", seed, 0)
        good = cache_path is None or (isinstance(cache_path, str) and bool(cache_path))
        require(good, "cache_path", cache_path, "a folder or null")
        verifier.require_states("verifier.path")
        self.max_length = min(max_length, verifier.max_length)
        self.verifier = verifier
        self.layers: Sequence[Layer] = (FINAL,)
        self.seed = seed
        self.data_path = data_path
        self.held_out_path = held_out_path
        self.eval_samples = eval_samples
        self._cache_path = cache_path
        self.distill = distill or Distill()
        self.reading = reading or Reading()
        if isinstance(verifier, SourceReader):
            require_untemplated(self.reading)
        self._prepared: _Data | None = None

    def prepare(self) -> None:
        """Read both files, and let the verifier answer the training data if it is to; once.

        Raises:
            UserError: a file is no training text (see `Samples`), or the cache or the answers
                cannot be used (see `StateCache`, `Distill`).
        """
        if self._prepared is None:
            self.verifier.model.requires_grad_(False)
            self._prepared = self._read_both()

    def _read_both(self) -> _Data:
        learnt, rest = self.reading.sources(self.data_path, self.held_out_path)
        # Not by the seed of the training: trainings of several seeds are compared.
        held_out = self._read(rest, self.reading, seed=0)
        # Their places are in another file than that of the cache.
        measured = replace(held_out.first(self.eval_samples), places=())
        reading = self.reading
        if self.distill.is_on:
            answers = self.distill.data_path(self.verifier, learnt, reading)
            reading = Reading(
                strict=reading.strict, tokens_path=reading.tokens_path
            )  # a file of ours
            learnt = reading.source(answers, learnt.option)
        samples = self._read(learnt, reading, self.seed)
        notes = [*held_out.notes(), *_shared(samples, measured, rest.name)]
        cache = None if self._cache_path is None else self._open_cache(self._cache_path, samples)
        return _Data(samples, Path(learnt.path).name, measured, rest.share, cache, notes)

    def _read(self, source: Source, reading: Reading, seed: int) -> Samples:
        verifier = self.verifier
        assert verifier.tokenizer is not None
        size, sources = verifier.vocab_size, Sources.of(verifier)
        given = (self.max_length, seed, size, reading, sources)
        return Samples.read(source, verifier.tokenizer, *given)

    @property
    def _data(self) -> _Data:
        assert self._prepared is not None, "prepare() comes first"
        return self._prepared

    @property
    def _samples(self) -> Samples:
        return self._data.samples

    def _open_cache(self, cache_path: str, samples: Samples) -> StateCache:
        known = fingerprint(self.verifier)
        identity = {
            "verifier": [known[name] for name in DIGESTS],
            "dtype": known["dtype"],
            "max_length": self.max_length,
            "tokens": samples.digest(),  # of the data, as the chat template renders them
            "layers": list(self.layers),
        }
        return StateCache(
            cache_path,
            samples.lengths.tolist(),
            self.verifier.state_size * len(self.layers),
            self.verifier.model.dtype,
            identity,
        )

    @property
    def data(self) -> str:
        """What was trained on, for a card: `talks.jsonl, 980 samples, 20 of 1000 rows left out`."""
        left_out = self._samples.left_out
        rows = f"{left_out.num_rows_left_out} of {left_out.num_rows} rows left out"
        share = self._data.share
        parts = [self._data.name, f"{self.num_samples} samples"]
        parts += [rows] if left_out.rows else []
        parts += [] if share is None else [f"{share.share:g} of the rows held out"]
        return ", ".join(parts)

    @property
    def num_samples(self) -> int:
        """How many samples an epoch has."""
        return len(self._samples)

    @property
    def num_tokens(self) -> int:
        """How many tokens of an epoch are read as targets."""
        return self._samples.num_counted

    def notes(self) -> Sequence[str]:
        """Say what is left out of the data, and what of them is held out and trained on, too."""
        return [*self._data.notes, *self._samples.notes()]

    def preview(self) -> str:
        """Show the first sample."""
        return self._samples.preview()

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1, with states that are stored."""
        batch, cache = self._samples.take(first, count), self._data.cache
        if cache is None or cache.missing(batch.places):
            return batch
        return replace(batch, hidden=cache.batch(batch.places))

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:  # [B, T, H of each layer] float32
        """Return the hidden states, the last ones at the end; from the cache, if there is one."""
        if batch.hidden is not None:
            return batch.hidden.float()
        self._place(batch.token_ids.device)
        cache = self._data.cache
        if cache is None or not batch.places:
            return self._run(batch).float()
        missing = cache.missing(batch.places)
        if missing:
            new = self._samples.batch(missing)
            states = self._run(new.to(batch.token_ids.device)).cpu()
            for place, state in zip(missing, states, strict=True):
                cache.write(place, state[: len(cache.read(place))])
        return cache.batch(batch.places).to(batch.token_ids.device).float()

    def along_texts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return what heads read: states [B, T, H], and token ids and what counts, [B, T] each.

        Of a verifier with an encoder that is what its decoder reads, without the sources.
        """
        found = self.hidden(batch), batch.token_ids, batch.counted
        if not isinstance(self.verifier, SourceReader):
            return found
        states, token_ids, counted = map(SourceSplit.of(batch.counted).behind, found)
        return states, token_ids, counted

    @property
    def held_out(self) -> Batch:
        """The held-out samples, with the states of a verifier that stays as it is.

        It reads them once, for all evaluations; they wait on the CPU, in its own type.
        """
        known = self._data.held_out
        if known.hidden is None and is_frozen(self.verifier):
            known = with_hidden(self.verifier, known, self.layers)
            self._prepared = replace(self._data, held_out=known)
        return known

    @property
    def _device(self) -> torch.device:
        return self.verifier.model.device

    def _place(self, device: torch.device) -> None:
        """Move the verifier to where the trainer trains."""
        if self._device != device:
            nn.Module.to(self.verifier.model, device)

    def _run(self, batch: Batch) -> Tensor:  # [B, T, H of each layer]
        token_ids, plain = batch.token_ids, self.verifier.prompt_mask is None
        if self.verifier.runtime != COMPILED or not plain or self.layers != (FINAL,):
            return hidden_along(self.verifier, batch, self.layers)
        read = texts_of(self.verifier.runtime, self.verifier.model)
        with torch.autocast(token_ids.device.type, enabled=False):
            return read(token_ids)[0]

    def of_layers(self, layers: Sequence[Layer]) -> "VerifierStates":
        """Return the same samples, of which the states of these layers are read.

        The last one is `final`: the teacher's distributions follow from it.

        Raises:
            UserError: the cache has the states of others.
        """
        assert layers[-1] == FINAL
        if tuple(layers) == tuple(self.layers):
            return self
        other = copy.copy(self)
        other.layers = tuple(layers)
        if self._prepared is not None:
            samples, path = self._samples, self._cache_path
            unread = replace(self._data.held_out, hidden=None)
            cache = None if path is None else other._open_cache(path, samples)
            other._prepared = replace(self._data, held_out=unread, cache=cache)
        return other

    def of(self, verifier: HFCausalLM) -> "VerifierStates":
        """Return the same samples, read by another verifier with the same tokens, uncached."""
        other = copy.copy(self)
        other.verifier = verifier
        unread = replace(self._data.held_out, hidden=None)
        other._prepared = replace(self._data, held_out=unread, cache=None)
        return other

    def placed(self, device: torch.device) -> HFCausalLM:
        """Return the verifier on a device, to decode with."""
        self._place(device)
        return cached_like(self.verifier, self.verifier.model)


def _shared(samples: Samples, held_out: Batch, name: str) -> list[str]:
    """Say what is measured on what was trained on; `name` is the option of the held-out data."""
    num, of = samples.num_shared(held_out), len(held_out.token_ids)
    sharing = f"{num} of {of} held-out samples share {RUN} tokens in a row, or all they have"
    better = "acceptance looks better than it is"
    return [f"{name}: {sharing}, with what is trained on: {better}"] if num else []
