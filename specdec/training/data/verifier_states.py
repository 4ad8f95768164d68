"""What heads are trained on: token ids, and the verifier's last hidden states along them."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from specdec.core.errors import require, require_int
from specdec.lm.fingerprint import DIGESTS, fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.training.data.distill import Distill
from specdec.training.data.overlap import RUN
from specdec.training.data.reading import Reading, Source
from specdec.training.data.samples import Samples
from specdec.training.data.state_cache import StateCache
from specdec.training.objective import Batch


class VerifierStates:
    """Samples of a data file, and the frozen verifier that reads them.

    With `cache_path` each sample is read once, by whichever run comes first. With `distill` the
    verifier answers the training data anew before they are read; held-out data stay as they are.
    `reading` is how both are read, and what is held out where `held_out_path` is None.

    Raises:
        UserError: a file is no training text (see `Samples`), or the cache or the answers cannot
            be used (see `StateCache`, `Distill`).
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
        require_int("data.max_length", max_length, 2)
        require_int("data.eval_samples", eval_samples, 1)
        require_int("seed", seed, 0)
        good = cache_path is None or (isinstance(cache_path, str) and bool(cache_path))
        require(good, "data.cache_path", cache_path, "a folder or null")
        verifier.require_states("verifier.path")
        verifier.model.requires_grad_(False)
        self._length = min(max_length, verifier.max_length)
        self.verifier = verifier
        self.seed = seed
        self._reading = reading or Reading()
        # Not by the seed of the training: trainings of several seeds are compared.
        learnt, rest = self._reading.sources(data_path, held_out_path)
        self._share, self._held_out_name = rest.share, rest.name
        held_out = self._read(rest, self._reading, seed=0)
        self._notes = [*held_out.notes()]
        # Their places are in another file than that of the cache.
        self._held_out = replace(held_out.first(eval_samples), places=())
        told = self._reading
        if distill is not None and distill.is_on:
            answers = distill.data_path(verifier, learnt, told)
            told = Reading(strict=told.strict, tokens_path=told.tokens_path)  # a file of ours
            learnt = told.source(answers, learnt.option)
        self._data_name = Path(learnt.path).name
        self._samples = self._read(learnt, told, seed)
        self._notes += self._shared()
        self._cache = None if cache_path is None else self._open_cache(cache_path)

    def _read(self, source: Source, reading: Reading, seed: int) -> Samples:
        verifier = self.verifier
        assert verifier.tokenizer is not None
        size = verifier.vocab_size
        return Samples(source, verifier.tokenizer, self._length, seed, size, reading)

    def _shared(self) -> list[str]:
        """Say what is measured on what was trained on."""
        num, held_out = self._samples.num_shared(self._held_out), len(self._held_out.token_ids)
        told = f"{num} of {held_out} held-out samples share {RUN} tokens in a row, or all they have"
        better = "acceptance looks better than it is"
        return [f"{self._held_out_name}: {told}, with what is trained on: {better}"] if num else []

    def _open_cache(self, cache_path: str) -> StateCache:
        known = fingerprint(self.verifier)
        identity = {
            "verifier": [known[name] for name in DIGESTS],
            "dtype": known["dtype"],
            "max_length": self._length,
            "tokens": self._samples.digest(),  # of the data, as the chat template renders them
        }
        return StateCache(
            cache_path,
            self._samples.lengths.tolist(),
            self.verifier.state_size,
            self.verifier.model.dtype,
            identity,
        )

    @property
    def data(self) -> str:
        """What was trained on, for a card: `talks.jsonl, 980 samples, 20 of 1000 rows left out`."""
        left_out = self._samples.left_out
        rows = f"{left_out.num_rows_left_out} of {left_out.num_rows} rows left out"
        told = [self._data_name, f"{self.num_samples} samples"]
        told += [rows] if left_out.rows else []
        told += [] if self._share is None else [f"{self._share.share:g} of the rows held out"]
        return ", ".join(told)

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
        return [*self._notes, *self._samples.notes()]

    def preview(self) -> str:
        """Show the first sample."""
        return self._samples.preview()

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1."""
        return self._samples.take(first, count)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:  # [B, T, H] float32
        """Return the last hidden states, from the cache where there is one."""
        if batch.hidden is not None:
            return batch.hidden.float()
        self._place(batch.token_ids.device)
        if self._cache is None or not batch.places:
            return self._run(batch.token_ids).float()
        missing = self._cache.missing(batch.places)
        if missing:
            new = self._samples.batch(missing)
            states = self._run(new.token_ids.to(batch.token_ids.device)).cpu()
            for place, state in zip(missing, states, strict=True):
                self._cache.write(place, state[: len(self._cache.read(place))])
        stored = [self._cache.read(place) for place in batch.places]
        return pad_sequence(stored, batch_first=True).to(batch.token_ids.device).float()

    @property
    def held_out(self) -> Batch:
        """The held-out samples, with the states of a verifier that stays as it is.

        It reads them once, for all evaluations; they wait on the CPU, in its own type.
        """
        known = self._held_out
        if known.hidden is None and is_frozen(self.verifier):
            self._held_out = known = with_hidden(self.verifier, known)
        return known

    @property
    def _device(self) -> torch.device:
        return self.verifier.model.device

    def _place(self, device: torch.device) -> None:
        """Move the verifier to where the trainer trains."""
        if self._device != device:
            nn.Module.to(self.verifier.model, device)

    def _run(self, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H]
        return last_hidden(self.verifier, token_ids)

    def of(self, verifier: HFCausalLM) -> "VerifierStates":
        """Return the same samples, read by another verifier with the same tokens, uncached."""
        other = copy.copy(self)
        other.verifier, other._cache = verifier, None
        other._held_out = replace(self._held_out, hidden=None)
        return other

    def placed(self, device: torch.device) -> HFCausalLM:
        """Return the verifier on a device, to decode with."""
        self._place(device)
        verifier = self.verifier
        return HFCausalLM(verifier.model, verifier.tokenizer, max_length=verifier.max_length)


def is_frozen(lm: HFCausalLM) -> bool:
    """Whether a model will say the same at the next evaluation."""
    return not any(weight.requires_grad for weight in lm.model.parameters())


@torch.no_grad()
def with_hidden(lm: HFCausalLM, batch: Batch) -> Batch:
    """Let a model read samples one after the other; its states wait on the CPU, in its own type."""
    read = [last_hidden(lm, row.token_ids.to(lm.model.device)).cpu() for row in batch.rows()]
    return replace(batch, hidden=torch.cat(read))


def last_hidden(lm: HFCausalLM, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H]
    """Run a model below its vocabulary head, in its own type, as decoding does.

    Padding stands behind, where none look.
    """
    with torch.autocast(token_ids.device.type, enabled=False):
        return lm.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
