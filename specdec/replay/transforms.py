"""Where each token of a decoded text fell in the verifier's law: what losslessness is tested by.

Texts are read as ordinary text, every token after the true ones before it (teacher forcing): no
candidates, no tree masks, no rewinding, so that a mistake in any of these shows as texts that do
not have the law that is computed here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.protocols import CausalLM
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.lm.batch import pad
from specdec.lm.vocabularies import fitted, readable

LOGITS_AT_ONCE = 1 << 25  # of all rows of a forward


@dataclass(frozen=True)
class Decoded:
    """What a verifier was asked, and what was emitted; the name keys the noise of its tokens."""

    name: str
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


def transforms(
    texts: Sequence[Decoded],
    verifier: CausalLM,
    sampling: Sampling,
    seed: int = 0,
    batch: int = 16,
    draft: CausalLM | None = None,
) -> Iterator[Tensor]:  # of [1, T] or [2, T] float64, on the CPU
    """Yield each text's randomised probability integral transforms, longest texts first.

    Token x after the context h gives a number that is uniform in [F(x^-), F(x)), with F the
    distribution function of `sampling`'s law p after h, likeliest tokens first. A token that the
    law does not have gives 1. The noise depends on `seed` and the text's name, not on the batch.

    With a `draft` there is a second row of numbers, for which the tokens stand in the order of
    q / p, largest first. Any order that the context fixes will do; this one has at its beginning
    what a rule that accepts too readily emits too often (Neyman and Pearson 1933), so that a bias
    towards the draft shows in far fewer tokens.
    """
    models = [verifier] if draft is None else [verifier, draft]
    longest_first = sorted(texts, key=lambda text: -len(text.prompt_ids) - len(text.output_ids))
    for start in range(0, len(texts), batch):
        yield from _batch(longest_first[start : start + batch], models, sampling, seed)


def _batch(
    texts: Sequence[Decoded], models: Sequence[CausalLM], sampling: Sampling, seed: int
) -> list[Tensor]:
    vocab_size = models[0].vocab_size
    longest = max(len(text.prompt_ids) + len(text.output_ids) for text in texts)
    # Tokens of each text that are read at once.
    chunk = max(1, LOGITS_AT_ONCE // (vocab_size * len(texts) * len(models)))
    for model in models:
        model.open(len(texts), longest + chunk)
        prompts = [readable(text.prompt_ids[:-1], model.vocab_size) for text in texts]
        model.prefill(range(len(texts)), prompts)
    streams = [RandomStream("transforms", seed, text.name) for text in texts]
    found = [[torch.zeros(len(models), 0, dtype=torch.float64)] for _ in texts]
    for start in range(0, max(len(text.output_ids) for text in texts), chunk):
        rows = [row for row, text in enumerate(texts) if len(text.output_ids) > start]
        some = [texts[row] for row in rows]
        logits = [_logits_before(model, rows, some, start, chunk) for model in models]
        for number, row in enumerate(rows):
            token_ids = texts[row].output_ids[start : start + chunk]
            uniforms = [streams[row].uniform() for _ in token_ids]
            p, *q = (
                sampling.warp(fitted(each[number, : len(token_ids)], vocab_size)) for each in logits
            )
            orders = [p, *(each / p for each in q)]
            placed = [transformed(p, token_ids, uniforms, order) for order in orders]
            found[row].append(torch.stack(placed).cpu())
    return [torch.cat(pieces, dim=1) for pieces in found]


def _logits_before(
    model: CausalLM, rows: Sequence[int], texts: Sequence[Decoded], start: int, chunk: int
) -> Tensor:  # [B, M, V]
    """Return the logits of outputs `start`, `start + 1`, ... after those before; M <= `chunk`."""
    before = [
        [text.prompt_ids[-1], *text.output_ids][start : min(start + chunk, len(text.output_ids))]
        for text in texts
    ]
    before = [readable(ids, model.vocab_size) for ids in before]
    lengths = [model.length(row) + len(ids) for row, ids in zip(rows, before, strict=True)]
    logits = model.forward(rows, pad(before, model.device)).logits
    for row, length in zip(rows, lengths, strict=True):
        model.keep(row, length)  # without the padding
    return logits


def transformed(
    laws: Tensor,  # [n, V]
    token_ids: Sequence[int],  # [n]
    uniforms: Sequence[float],  # [n], in [0, 1)
    order: Tensor,  # [n, V]
) -> Tensor:  # [n] float64
    """Place each uniform number between F(x^-) and F(x), tokens of large `order` first, then by id.

    Sums are in float64, and divided by their total: a law of float32 sums to 1 only nearly.
    """
    laws = laws.double()
    tokens = torch.tensor(token_ids, device=laws.device)[:, None]
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=laws.device)
    own, here = laws.gather(1, tokens), order.gather(1, tokens)
    stands_before = torch.arange(laws.shape[1], device=laws.device) < tokens
    stands_before = (order > here) | ((order == here) & stands_before)
    own = own.squeeze(1)
    placed = ((laws * stands_before).sum(dim=1) + own * numbers) / laws.sum(dim=1)
    return placed.where(own > 0, 1.0)
