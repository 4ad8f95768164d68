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

LOGITS_AT_ONCE = 1 << 25  # of all rows of a forward


@dataclass(frozen=True)
class Decoded:
    """What a verifier was asked, and what was emitted; the name keys the noise of its tokens."""

    name: str
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


def transforms(
    texts: Sequence[Decoded], verifier: CausalLM, sampling: Sampling, seed: int = 0, batch: int = 16
) -> Iterator[Tensor]:  # of [T] float64, on the CPU
    """Yield each text's randomised probability integral transforms, longest texts first.

    Token x after the context h gives a number that is uniform in [F(x^-), F(x)), with F the
    distribution function of `sampling`'s law after h, likeliest tokens first. A token that the law
    does not have gives 1. The noise depends on `seed` and the text's name, not on the batch.
    """
    longest_first = sorted(texts, key=lambda text: -len(text.prompt_ids) - len(text.output_ids))
    for start in range(0, len(texts), batch):
        yield from _batch(longest_first[start : start + batch], verifier, sampling, seed)


def _batch(
    texts: Sequence[Decoded], verifier: CausalLM, sampling: Sampling, seed: int
) -> list[Tensor]:
    longest = max(len(text.prompt_ids) + len(text.output_ids) for text in texts)
    chunk = max(1, LOGITS_AT_ONCE // (verifier.vocab_size * len(texts)))  # tokens of each text
    verifier.open(len(texts), longest + chunk)
    verifier.prefill(range(len(texts)), [text.prompt_ids[:-1] for text in texts])
    streams = [RandomStream("transforms", seed, text.name) for text in texts]
    found = [[torch.zeros(0, dtype=torch.float64)] for _ in texts]
    for start in range(0, max(len(text.output_ids) for text in texts), chunk):
        rows = [row for row, text in enumerate(texts) if len(text.output_ids) > start]
        asked = [texts[row].output_ids[start : start + chunk] for row in rows]
        logits = _logits_before(verifier, rows, [texts[row] for row in rows], start, chunk)
        for number, (row, token_ids) in enumerate(zip(rows, asked, strict=True)):
            laws = sampling.warp(logits[number, : len(token_ids)])
            uniforms = [streams[row].uniform() for _ in token_ids]
            found[row].append(transformed(laws, token_ids, uniforms).cpu())
    return [torch.cat(pieces) for pieces in found]


def _logits_before(
    verifier: CausalLM, rows: Sequence[int], texts: Sequence[Decoded], start: int, chunk: int
) -> Tensor:  # [B, M, V]
    """Return the logits that outputs `start`, `start + 1`, ... were drawn from; M <= `chunk`."""
    before = [
        [text.prompt_ids[-1], *text.output_ids][start : min(start + chunk, len(text.output_ids))]
        for text in texts
    ]
    lengths = [verifier.length(row) + len(ids) for row, ids in zip(rows, before, strict=True)]
    logits = verifier.forward(rows, pad(before, verifier.device)).logits
    for row, length in zip(rows, lengths, strict=True):
        verifier.keep(row, length)  # without the padding
    return logits


def transformed(
    laws: Tensor,  # [n, V]
    token_ids: Sequence[int],  # [n]
    uniforms: Sequence[float],  # [n], in [0, 1)
) -> Tensor:  # [n] float64
    """Place each uniform number between F(x^-) and F(x); equally likely tokens count by their id.

    Sums are in float64, and divided by their total: a law of float32 sums to 1 only nearly.
    """
    laws = laws.double()
    tokens = torch.tensor(token_ids, device=laws.device)[:, None]
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=laws.device)
    own = laws.gather(1, tokens)
    stands_before = torch.arange(laws.shape[1], device=laws.device) < tokens
    stands_before = (laws > own) | ((laws == own) & stands_before)
    own = own.squeeze(1)
    placed = ((laws * stands_before).sum(dim=1) + own * numbers) / laws.sum(dim=1)
    return placed.where(own > 0, 1.0)
