"""Training samples for heads: token ids, and which of them count."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.training.data.overlap import num_shared
from specdec.training.data.reading import Reading, Source
from specdec.training.data.sources import Sources
from specdec.training.data.tokenised import Tokenised, tokenised
from specdec.training.objective import Batch

Sample = tuple[Tensor, Tensor]  # token ids [T] and which of them count [T]


class Samples:
    """Batches of a data file or data set, or of a share of it, in an order that a seed fixes.

    Plain text is cut into blocks that count whole. Of a conversation only what the assistant says
    counts; see `AnswerSplitter`. Of text that the verifier wrote (`distill`) the prompt does not
    count. Samples are cut at `max_length` tokens; rows of which nothing can be trained on are left
    out and counted. `vocab_size` is how many tokens the model's embeddings hold: often more than
    the tokenizer, and such padding may be drawn.
    """

    def __init__(self, data: Tokenised, tokenizer: PreTrainedTokenizerBase, name: str, seed: int):
        self.tokenizer = tokenizer
        self.left_out = data.left_out
        self._store = data.store
        self._name = name
        self._seed = seed
        self._epoch, self._order = -1, torch.zeros(0, dtype=torch.int64)

    @classmethod
    def read(
        cls,
        source: Source | str,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        seed: int = 0,
        vocab_size: int | None = None,
        reading: Reading | None = None,
        sources: Sources | None = None,
    ) -> "Samples":
        """Tokenise what no run has tokenised before; hours, for a large data set.

        `sources` says how rows are read for a model that has an encoder.

        Raises:
            UserError: there is no such data, or most of it is of no use (with `data.strict`, any).
        """
        reading = reading or Reading()
        source = reading.source(source, "data.path") if isinstance(source, str) else source
        size = vocab_size or len(tokenizer)
        found = tokenised(source, reading, tokenizer, max_length, size, sources=sources)
        return cls(found, tokenizer, source.name, seed)

    def __len__(self) -> int:
        """How many samples there are."""
        return self._store.num_samples

    @property
    def lengths(self) -> Tensor:  # [N] int64
        """How many tokens each sample has, in the order of the file."""
        return self._store.lengths

    @property
    def num_counted(self) -> int:
        """How many tokens of one epoch are read as targets; nothing says the first of a sample."""
        return int(self._store.header["num_counted"])

    def take(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1, counted over all epochs."""
        return self.batch([self._place(number) for number in range(first, first + count)])

    def batch(self, places: Sequence[int]) -> Batch:
        """Return the samples at some places of the file."""
        return padded([self._store.sample(place) for place in places], places)

    def first(self, count: int) -> Batch:
        """Return the first samples of the first epoch, or all of it."""
        return self.take(0, min(count, len(self)))

    def _place(self, number: int) -> int:
        """Return where a sample stands: a function of the seed and of its number alone."""
        epoch, position = divmod(number, len(self))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self), generator=generator)
            self._epoch = epoch
        return int(self._order[position])

    def digest(self) -> str:
        """Tell these samples from others by their token ids."""
        return self._store.digest

    def num_shared(self, batch: Batch) -> int:
        """Return how many samples of another batch are among these, whole or in part."""
        rows = zip(batch.token_ids, batch.counted, strict=True)
        return num_shared(self._store, list(rows))

    def preview(self) -> str:
        """Show the first sample; what does not count stands in [[brackets]]."""
        shown: list[str] = []
        token_ids, counted = self._store.sample(0)
        start = 0
        for end in range(1, len(token_ids) + 1):
            if end == len(token_ids) or counted[end] != counted[start]:
                piece = str(self.tokenizer.decode(token_ids[start:end].tolist()))
                shown.append(piece if counted[start] else f"[[{piece}]]")
                start = end
        return "".join(shown)

    def notes(self) -> Iterator[str]:
        """Say what is left out, a line each, after the option that names the data."""
        for line in self.left_out.lines():
            yield f"{self._name}: {line}"


def padded(rows: Sequence[Sample], places: Sequence[int] = ()) -> Batch:
    """Stack samples of unlike lengths; padding does not count."""
    token_ids, counted = zip(*rows, strict=True)
    return Batch(
        torch.nn.utils.rnn.pad_sequence(list(token_ids), batch_first=True),
        torch.nn.utils.rnn.pad_sequence(list(counted), batch_first=True),
        tuple(places),
    )
