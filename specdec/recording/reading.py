"""Reading texts as ordinary text, every token after the true ones before it (teacher forcing).

No candidates, no tree masks, no rewinding; as many tokens at a time as memory
has room for the logits of.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from specdec.core.protocols import CausalLM
from specdec.core.unlike_vocabularies import fitted, readable
from specdec.lm.batch import pad
from specdec.lm.begin import begin

LOGITS_AT_ONCE = 1 << 25  # of all rows and models of a forward


class Continued(Protocol):
    """A prompt of at least one token, and the tokens that follow it."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The prompt."""
        ...

    @property
    def output_ids(self) -> Sequence[int]:  # [T]
        """The text that follows it."""
        ...


AnyText = TypeVar("AnyText", bound=Continued)


class Piece(NamedTuple):
    """What each model says about some neighbouring tokens of one text."""

    text: int  # its number among those that are read
    start: int  # the first of the tokens
    logits: list[Tensor]  # per model [n, V], V of the first model


def longest_first(texts: Sequence[AnyText], batch: int) -> Iterator[list[AnyText]]:
    """Deal texts out in batches, so that neighbours are of like lengths."""
    ordered = sorted(texts, key=lambda text: -len(text.prompt_ids) - len(text.output_ids))
    for start in range(0, len(ordered), batch):
        yield ordered[start : start + batch]


def read(
    texts: Sequence[Continued], models: Sequence[CausalLM], logits_at_once: int = LOGITS_AT_ONCE
) -> Iterator[Piece]:
    """Let models read a batch of texts; all tokens of a text come, in their order.

    No forward makes more than `logits_at_once` logits, unless it is of a single token of each text.
    """
    vocab_size = models[0].vocab_size
    most = max(len(text.output_ids) for text in texts)
    # Tokens of each text that are read at once.
    chunk = max(1, min(most, logits_at_once // (vocab_size * len(texts) * len(models))))
    for model in models:
        prefill(model, texts, chunk)
    for start in range(0, most, chunk):
        rows = [row for row, text in enumerate(texts) if len(text.output_ids) > start]
        some = [texts[row] for row in rows]
        logits = [logits_before(model, rows, some, start, chunk) for model in models]
        for number, row in enumerate(rows):
            num_tokens = min(chunk, len(texts[row].output_ids) - start)
            yield Piece(
                row, start, [fitted(each[number, :num_tokens], vocab_size) for each in logits]
            )


def prefill(model: CausalLM, texts: Sequence[Continued], chunk: int) -> None:
    """Read all of the prompts but the last token, whose logits are wanted."""
    longest = max(len(text.prompt_ids) + len(text.output_ids) for text in texts)
    model.open(len(texts), longest + chunk)  # with padding
    prompts = [readable(text.prompt_ids, model.vocab_size) for text in texts]
    begin(model, range(len(texts)), prompts)


def logits_before(
    model: CausalLM, rows: Sequence[int], texts: Sequence[Continued], start: int, chunk: int
) -> Tensor:  # [B, M, V]
    """Return the logits of outputs `start`, `start + 1`, ... after those before; M <= `chunk`."""
    before = [[text.prompt_ids[-1], *text.output_ids[:-1]][start : start + chunk] for text in texts]
    token_ids = pad([readable(ids, model.vocab_size) for ids in before], model.device)
    # Padding stays: it stands behind texts that end here, of which no more is read.
    return model.forward(rows, token_ids).logits
