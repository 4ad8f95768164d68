"""How often the k-th of several children is the accepted one, along a text.

At each position of the text children are drawn from the proposer's distribution without
replacement, and recursive rejection is asked for its odds: P(the k-th child is the one that is
accepted). Nothing is accepted or refused by chance, and the k-th child's own draw is averaged out,
too, so that what is left is the noise of the draws before it and that of the choice of positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.unlike_vocabularies import fitted, known
from specdec.core.values import Draw
from specdec.heads.base import DraftHeads
from specdec.heads.forcing import HeadTargets, forced_states
from specdec.lm.hf import HFCausalLM
from specdec.training.chunked import LOGITS_AT_ONCE
from specdec.training.data.last_hidden import hidden_along, last_hidden
from specdec.training.data.samples import Samples
from specdec.training.objective import Batch
from specdec.tree.sampled import without_replacement
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.rejection import positional_acceptance


@dataclass(frozen=True)
class ScoredPositions:
    """Some positions of a batch, and both models' logits about the token behind each."""

    depth: int  # from 0: a row of the result; a draft model has one for all depths
    positions: Tensor  # [n], of the flattened batch [B * T]
    verifier_logits: Tensor  # [n, V]
    draft_logits: Tensor  # [n, V]


# The pieces of a batch, with bounded numbers of logits.
PieceSource = Callable[[Batch], Iterator[ScoredPositions]]


@dataclass(frozen=True)
class Positional:
    """Sums of positional acceptance over the positions of a text."""

    sums: Tensor  # [D, K] float64
    num_positions: int  # at each depth

    def __add__(self, other: "Positional") -> "Positional":
        return Positional(self.sums + other.sums, self.num_positions + other.num_positions)

    def acceptance(self) -> list[list[float]]:
        """Return the means, [D][K]."""
        return (self.sums / self.num_positions).tolist()


@dataclass(frozen=True)
class PositionalMeter:
    """Measures `max_children` children, with the noise of `seed`."""

    pieces: PieceSource
    depth: int  # D: the rows of the result
    sampling: Sampling
    temperature: float | None  # of the draft; None: the verifier's
    max_children: int
    seed: int

    def nothing(self) -> Positional:
        """Return the sums of no positions."""
        return Positional(torch.zeros(self.depth, self.max_children, dtype=torch.float64), 0)

    def along(self, samples: Samples, num_samples: int, batch: int) -> Iterator[Positional]:
        """Yield the sums of the first samples, `batch` of them at a time."""
        for first in range(0, num_samples, batch):
            yield self.of(samples.take(first, min(batch, num_samples - first)))

    @torch.inference_mode()
    def of(self, batch: Batch) -> Positional:
        """Measure along one batch."""
        sums = self.nothing().sums
        counts = [0] * self.depth
        for piece in self.pieces(batch):
            if not len(piece.positions):
                continue
            found = self._accepted(piece, batch)
            sums[piece.depth, : found.shape[1]] += found.sum(dim=0, dtype=torch.float64).cpu()
            counts[piece.depth] += len(found)
        assert len(set(counts)) == 1
        return Positional(sums, counts[0])

    def _accepted(self, piece: ScoredPositions, batch: Batch) -> Tensor:  # [n, K], K at most V
        p = self.sampling.warp(piece.verifier_logits)
        q = self.sampling.at(self.temperature).warp(piece.draft_logits)
        length = batch.token_ids.shape[1]
        places = batch.places or range(len(batch.token_ids))
        # A stream for each position, whatever it is read together with.
        streams = [
            RandomStream(self.seed, "positional", places[at // length], at % length, piece.depth)
            for at in piece.positions.tolist()
        ]
        return drawn_acceptance(p, q, min(self.max_children, q.shape[-1]), streams)


def drawn_acceptance(
    p: Tensor, q: Tensor, num_children: int, streams: list[RandomStream]
) -> Tensor:  # [n, V] twice -> [n, K]
    """Draw K children without replacement at each of n nodes; return P(the k-th is accepted)."""
    drawn = without_replacement(q[:, None], num_children, streams)
    assert drawn.there is not None
    counts = tuple(drawn.there.sum(dim=-1).flatten().tolist())
    nodes = CandidateNodes((0,) * len(p), tuple(range(len(p))), drawn.token_ids[:, 0], counts, p, q)
    # Rounding may leave a hair beyond what a probability can be.
    return positional_acceptance(nodes, Draw.WITHOUT_REPLACEMENT).clamp_(0, 1)


def draft_pieces(draft: HFCausalLM, verifier: HFCausalLM) -> PieceSource:
    """Compare a draft model with its verifier, wherever the token behind counts."""
    return partial(_draft_pieces, draft, verifier)


def _draft_pieces(
    draft: HFCausalLM, verifier: HFCausalLM, batch: Batch
) -> Iterator[ScoredPositions]:
    batch = batch.to(verifier.device)
    positions = nn.functional.pad(batch.counted[:, 1:], (0, 1)).flatten().nonzero()[:, 0]
    verifier_hidden = last_hidden(verifier, batch).flatten(0, 1)
    read = replace(batch, token_ids=known(batch.token_ids, draft.vocab_size))
    states = last_hidden(draft, read).flatten(0, 1)
    for some in positions.split(_positions_at_once(verifier, draft)):
        logits = fitted(draft.unembed(states[some]), verifier.vocab_size)
        yield ScoredPositions(0, some, verifier.unembed(verifier_hidden[some]), logits)


def head_pieces(heads: DraftHeads, verifier: HFCausalLM, depth: int) -> PieceSource:
    """Compare the first `depth` heads with their verifier, after the true tokens in between."""
    return partial(_head_pieces, heads, verifier, depth)


def _head_pieces(
    heads: DraftHeads, verifier: HFCausalLM, depth: int, batch: Batch
) -> Iterator[ScoredPositions]:
    batch = batch.to(verifier.device)
    targets = HeadTargets.of(batch.token_ids, batch.counted, depth).with_all(depth)
    hidden = hidden_along(verifier, batch, heads.layers)
    verifier_hidden = hidden[..., -heads.hidden_size :].flatten(0, 1)
    read = hidden.to(next(heads.parameters()).dtype)
    states = forced_states(heads, verifier, read, batch.token_ids, targets)
    size = _positions_at_once(verifier)
    for head in range(depth):
        before = targets.following_ids[:, head]
        pieces = (each.split(size) for each in (targets.positions, states[head], before))
        for at, state, previous_ids in zip(*pieces, strict=True):
            # Head i speaks at t about token t + 2 + i, and the verifier at t + 1 + i.
            verifier_logits = verifier.unembed(verifier_hidden[at + 1 + head])
            logits = heads.logits(head, state, previous_ids, verifier.unembed)
            yield ScoredPositions(head, at, verifier_logits, fitted(logits, verifier.vocab_size))


def _positions_at_once(*models: HFCausalLM) -> int:
    return max(1, LOGITS_AT_ONCE // sum(model.vocab_size for model in models))
