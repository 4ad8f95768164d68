"""What a language model is trained and measured on: blocks of text, or answers behind prompts."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.core.randomness import RandomStream
from specdec.prompts import Conversation
from specdec.training.data.blocks import ShuffledBlocks
from specdec.training.data.reading import Source
from specdec.training.data.samples import Samples
from specdec.training.data.text import first_document
from specdec.training.data.token_store import TokenStore
from specdec.training.objective import Batch

SHOWN = 64  # tokens of a preview


def has_talks(source: Source) -> bool:
    """Whether the first row that can be used is a conversation."""
    return isinstance(first_document(source), Conversation)


class LMSamples(Protocol):
    """Batches to train on, and others to measure on; what counts behind the prompts of samples."""

    @property
    def num_samples(self) -> int:
        """How many samples a pass has."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many tokens of a pass are read as targets; of random numbers the mean."""
        ...

    def preview(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the beginning of the first sample."""
        ...

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1."""
        ...

    def held_out(self) -> Iterator[Batch]:
        """Yield the samples to measure on, one by one: the same at every evaluation."""
        ...


class Blocks:
    """Blocks of `length` tokens that count whole; the first `eval_tokens` others measure."""

    def __init__(
        self, learnt: TokenStore, measured: TokenStore, length: int, eval_tokens: int, seed: int
    ):
        self._blocks = ShuffledBlocks(learnt, length, seed)
        self._measured = measured[:eval_tokens]
        self._length = length
        self._seed = seed

    @property
    def num_samples(self) -> int:
        """How many blocks a pass has."""
        return self._blocks.per_epoch

    @property
    def num_tokens(self) -> int:
        """All but the first of each block."""
        return self.num_samples * (self._length - 1)

    def preview(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the beginning of the first block."""
        return f"{tokenizer.decode(self._blocks.take(0, 1)[0, :SHOWN].tolist())} ..."

    def batch(self, first: int, count: int) -> Batch:
        """Return blocks; see `ShuffledBlocks.take`."""
        return self._batch(self._blocks.take(first, count), (self._seed,), first)

    def held_out(self) -> Iterator[Batch]:
        """Yield the blocks of the held-out text; the last one may be shorter."""
        for number, start in enumerate(range(0, len(self._measured) - 1, self._length)):
            block = self._measured[start : start + self._length][None]
            yield self._batch(block, ("held out",), number)

    def _batch(self, token_ids: Tensor, key: tuple[object, ...], first: int) -> Batch:
        return Batch.of(token_ids)


class SplitBlocks(Blocks):
    """The same blocks, each split at a random place: what stands before it is the prompt.

    The place is uniform, and each side has a token at least (Raffel et al. 2020, section 3.2.3). It
    depends on the seed and the block's number alone, of held-out blocks on their number.
    """

    @property
    def num_tokens(self) -> int:
        """Half of the tokens, on average."""
        return self.num_samples * self._length // 2

    def _batch(self, token_ids: Tensor, key: tuple[object, ...], first: int) -> Batch:
        count, length = token_ids.shape
        streams = [RandomStream("prefix", *key, first + row) for row in range(count)]
        places = torch.tensor([[1 + stream.integer(length - 1)] for stream in streams])
        return Batch(token_ids, torch.arange(length) >= places)


class Answers:
    """Conversations of which the answers count, each behind all that decoding would render."""

    def __init__(self, learnt: Samples, measured: Samples, eval_tokens: int):
        self._learnt, self._measured = learnt, measured
        self._eval_tokens = eval_tokens

    @property
    def num_samples(self) -> int:
        """How many samples a pass has."""
        return len(self._learnt)

    @property
    def num_tokens(self) -> int:
        """The tokens of the answers."""
        return self._learnt.num_counted

    def preview(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Show the first sample; prompts stand in [[brackets]]."""
        return self._learnt.preview()

    def batch(self, first: int, count: int) -> Batch:
        """Return samples; see `Samples.take`."""
        return self._learnt.take(first, count)

    def held_out(self) -> Iterator[Batch]:
        """Yield samples until they have the wanted number of tokens."""
        num_tokens = 0
        for place in range(len(self._measured)):
            if num_tokens >= self._eval_tokens:
                return
            yield self._measured.batch([place])
            num_tokens += int(self._measured.lengths[place])

    def notes(self) -> Sequence[str]:
        """Say what is left out."""
        return [*self._learnt.notes(), *self._measured.notes()]
