"""Where each token of a decoded text fell in the verifier's distribution: a test of losslessness.

Texts are read as ordinary text, every token after the true ones before it (teacher forcing): no
candidates, no tree masks, no rewinding, so that a mistake in any of these shows as texts that do
not have the distribution that is computed here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.processing import along
from specdec.core.protocols import CausalLM
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.lm.generation import end_ids_of, heeded
from specdec.recording.reading import LOGITS_AT_ONCE, longest_first, read


@dataclass(frozen=True)
class Decoded:
    """A prompt and the text that was emitted; the name keys the noise of its tokens."""

    name: str
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    budget: int | None = None  # tokens that might have been emitted; None: as many as there are

    @property
    def most(self) -> int:
        """The budget, as a number."""
        return len(self.output_ids) if self.budget is None else self.budget


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
    cumulative function of `sampling`'s distribution p after h, likeliest tokens first. A token
    that the distribution does not have gives 1. The noise depends on `seed` and the text's name,
    not on the batch.

    With a `draft` there is a second row of numbers, for which the tokens stand in the order of
    q / p, largest first. Any order that the context fixes will do; this one has at its beginning
    what a rule that accepts too readily emits too often (Neyman and Pearson 1933), so that a bias
    towards the draft shows in far fewer tokens.
    """
    models = [verifier] if draft is None else [verifier, draft]
    sampling = heeded(sampling, verifier, end_ids_of(verifier))
    for some in longest_first(texts, batch):
        yield from _batch(some, models, sampling, seed)


def _batch(
    texts: Sequence[Decoded], models: Sequence[CausalLM], sampling: Sampling, seed: int
) -> list[Tensor]:
    streams = [RandomStream("transforms", seed, text.name) for text in texts]
    found = [[torch.zeros(len(models), 0, dtype=torch.float64)] for _ in texts]
    for piece in read(texts, models, LOGITS_AT_ONCE):
        text = texts[piece.text]
        known = sampling.of_prompt(text.prompt_ids, text.most)
        p, *q = (
            sampling.warp(along(known, text.prompt_ids, text.output_ids, logits, piece.start))
            for logits in piece.logits
        )
        token_ids = texts[piece.text].output_ids[piece.start : piece.start + len(p)]
        uniforms = [streams[piece.text].uniform() for _ in token_ids]
        orders = [p, *(each / p for each in q)]
        placed = [transformed(p, token_ids, uniforms, order) for order in orders]
        found[piece.text].append(torch.stack(placed).cpu())
    return [torch.cat(pieces, dim=1) for pieces in found]


def transformed(
    probs: Tensor,  # [n, V]
    token_ids: Sequence[int],  # [n]
    uniforms: Sequence[float],  # [n], in [0, 1)
    order: Tensor,  # [n, V]
) -> Tensor:  # [n] float64
    """Place each uniform number between F(x^-) and F(x), tokens of large `order` first, then by id.

    Sums are in float64, and divided by their total: a distribution of float32 sums to 1 only
    nearly.
    """
    probs = probs.double()
    tokens = torch.tensor(token_ids, device=probs.device)[:, None]
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=probs.device)
    own, here = probs.gather(1, tokens), order.gather(1, tokens)
    stands_before = torch.arange(probs.shape[1], device=probs.device) < tokens
    stands_before = (order > here) | ((order == here) & stands_before)
    own = own.squeeze(1)
    placed = ((probs * stands_before).sum(dim=1) + own * numbers) / probs.sum(dim=1)
    return placed.where(own > 0, 1.0)
