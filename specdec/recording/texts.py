"""What replay reads: texts of the verifier, and how likely it found each of their tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.processing import along
from specdec.core.protocols import CausalLM
from specdec.core.sampling import Sampling
from specdec.core.trace import TextKey
from specdec.core.unlike_vocabularies import fitted
from specdec.lm.batch import pad
from specdec.recording.reading import logits_before, prefill


@dataclass(frozen=True)
class Text:
    """One text of T tokens that has the verifier's distribution, with the prompt it continues."""

    prompt_id: str
    category: str
    turn: int  # 0-based
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]  # [T]
    log_p: tuple[float, ...]  # [T]: of each token where it was drawn, in nats
    finish_reason: str  # as in `Trace`
    budget: int  # tokens that might have been emitted, at least T
    sample: int = 0  # as in `Trace`

    @property
    def key(self) -> TextKey:
        """What tells it from all other texts of a recording."""
        return self.prompt_id, self.sample, self.turn


def logits_along(
    model: CausalLM, texts: Sequence[Text], vocab_size: int
) -> Tensor:  # [B, T, V], T of the longest text
    """Read the texts, and return what the model says about each of their tokens before it."""
    most = max(len(text.output_ids) for text in texts)
    prefill(model, texts, most)
    return fitted(logits_before(model, range(len(texts)), texts, 0, most), vocab_size)


def processed(
    texts: Sequence[Text], sampling: Sampling, logits: Tensor, depth: int = 1
) -> Tensor:  # [B, T, V] -> [B, T, V]
    """Process the logits, at `depth` of steps that begin at each place, of tokens of the texts.

    Whoever stands at depth d of a step that begins at s has the text's first s + d - 1 tokens
    before it.
    """
    if not sampling.processors:
        return logits
    found: list[Tensor] = []
    for text, rows in zip(texts, logits, strict=True):
        known = sampling.of_prompt(text.prompt_ids, text.budget)
        found.append(along(known, text.prompt_ids, text.output_ids, rows, depth - 1))
    return torch.stack(found)


def mean_context(texts: Sequence[Text]) -> float:
    """Return how many cells are cached, on average, where a token of the texts is decoded."""
    sums = [
        (len(text.prompt_ids) - 1) * number + number * (number - 1) / 2
        for text in texts
        for number in [len(text.output_ids)]
    ]
    return sum(sums) / sum(len(text.output_ids) for text in texts)


def output_ids(texts: Sequence[Text], device: torch.device) -> Tensor:  # [B, T] int64, padded
    """Return the tokens of the texts side by side."""
    return pad([text.output_ids for text in texts], device)


def batches(texts: Sequence[Text], cells_at_once: int) -> Iterator[list[Text]]:
    """Deal texts out so that a batch of B texts, the longest of T tokens, has B x T <= the limit.

    The longest come first, so that neighbours are of like lengths.
    """
    some: list[Text] = []
    for text in sorted(texts, key=lambda text: -len(text.output_ids)):
        if some and (len(some) + 1) * len(some[0].output_ids) > cells_at_once:
            yield some
            some = []
        some.append(text)
    if some:
        yield some
