"""The losses of all heads along a text, in one module, as wrappers for several processes want."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from specdec.core.errors import require
from specdec.heads.base import DraftHeads
from specdec.heads.forcing import HeadTargets, forced_states
from specdec.lm.hf import HFCausalLM
from specdec.lm.unembedding import trained_above
from specdec.training.chunked import LOGITS_AT_ONCE, chunk_by_chunk, chunked_sum
from specdec.training.objective import Loss
from specdec.training.position_subset import Subset, random_run
from specdec.training.step_loss import of_steps


class HeadLosses(nn.Module):
    """Heads and their loss. Of tokens' losses head i's (from 0) weighs `decay^i`.

    Raises:
        UserError: `share` is less than 1, but the loss must see all positions.
    """

    def __init__(
        self,
        heads: DraftHeads,
        loss: Loss,
        decay: float,
        share: float = 1.0,
        subset: Subset = random_run,
    ):
        super().__init__()
        self.heads = heads
        self.loss = of_steps(loss, decay)
        expected = f"1 with loss={type(loss).__name__}, whose weights need every position"
        require(share == 1 or not self.loss.needs_all, "share", share, expected)
        self._share = share
        self._subset = subset

    def forward(
        self, verifier: HFCausalLM, hidden: Tensor, token_ids: Tensor, counted: Tensor
    ) -> Tensor:
        """Sum the losses: hidden [B, T, W], token ids and counted [B, T] -> scalar.

        W numbers are what the heads read, and behind that the last states, if they do not read
        them. Of the verifier they read embeddings and may share the vocabulary head; it teaches.
        """
        ahead = HeadTargets.of(token_ids, counted, self.heads.num_heads)
        count, device = len(ahead.positions), ahead.positions.device
        chosen, factor = self._subset(count, self._share, device)
        ahead = ahead.at(chosen)
        states = forced_states(self.heads, verifier, hidden, token_ids, ahead)
        flat_hidden = hidden[..., -self.heads.hidden_size :].flatten(0, 1).detach()

        def scores(piece: slice, chunk: Sequence[Tensor]) -> Tensor:  # [n, K]
            ids = ahead.following_ids[piece]
            verifier_log_p = self._verifier_log_p(
                verifier, flat_hidden, ahead.positions[piece], len(chunk)
            )
            found = [
                self.loss(
                    self._logits(verifier, head, state, ids[:, head]),
                    ids[:, head + 1],
                    next(verifier_log_p),
                )
                for head, state in enumerate(chunk)
            ]
            return torch.stack(found, dim=1)

        @torch.no_grad()
        def all_scores() -> Tensor:
            return torch.cat(list(chunk_by_chunk(scores, states, self._chunk_size)))

        weights = factor * self.loss.weights(ahead.positions, ahead.wanted, all_scores)

        def total(piece: slice, chunk: Sequence[Tensor]) -> Tensor:
            steps = self.loss.combine(scores(piece, chunk), ahead.wanted[piece])
            return (steps * weights[piece]).sum()

        return chunked_sum(total, states, self._trained(verifier), self._chunk_size)

    @property
    def _chunk_size(self) -> int:
        # All heads' logits of a chunk are there at once.
        return max(1, LOGITS_AT_ONCE // (self.heads.vocab_size * self.heads.num_heads))

    def _trained(self, verifier: HFCausalLM) -> Sequence[Tensor]:
        """The vocabulary projections, and what corrects them, that gradients are wanted for."""
        own = self.heads.trained_above()
        return own if self.heads.vocabulary_heads else [*own, *trained_above(verifier.model)]

    def _logits(
        self, verifier: HFCausalLM, head: int, state: Tensor, previous_ids: Tensor
    ) -> Tensor:  # [n, H], [n] -> [n, V]
        return self.heads.logits(head, state, previous_ids, verifier.unembed).float()

    @torch.no_grad()
    def _verifier_log_p(
        self, verifier: HFCausalLM, flat_hidden: Tensor, positions: Tensor, num_heads: int
    ) -> Iterator[Tensor | None]:
        """Yield for each head the verifier's log-probabilities [n, V] of the same token.

        Head i's are those after position t + 1 + i: neighbours share them, so each position's are
        computed once for all heads.
        """
        if not self.loss.uses_verifier:
            yield from [None] * num_heads
            return
        ahead = positions[:, None] + torch.arange(1, num_heads + 1, device=positions.device)
        # Behind the end no head is wanted; any distribution will do.
        needed, place = ahead.clamp(max=len(flat_hidden) - 1).unique(return_inverse=True)
        log_p = verifier.unembed(flat_hidden[needed]).float().log_softmax(dim=-1)
        for head in range(num_heads):
            yield log_p[place[:, head]]

    @torch.no_grad()
    def hits(
        self, verifier: HFCausalLM, hidden: Tensor, token_ids: Tensor, counted: Tensor
    ) -> Tensor:  # [K, 3]
        """Count per head: right at rank 1, right within rank 5, all."""
        ahead = HeadTargets.of(token_ids, counted, self.heads.num_heads)
        states = forced_states(self.heads, verifier, hidden, token_ids, ahead)
        size = self._chunk_size
        hits = torch.zeros(len(states), 3, device=hidden.device)
        for head, state in enumerate(states):
            for start in range(0, len(state), size):
                piece = slice(start, start + size)
                wanted, ids = ahead.wanted[piece, head], ahead.following_ids[piece]
                logits = self._logits(verifier, head, state[piece], ids[:, head])
                best = logits.topk(5, dim=-1).indices
                right = (best == ids[:, head + 1, None]) & wanted[:, None]
                hits[head] += torch.stack([right[:, 0].sum(), right.sum(), wanted.sum()])
        return hits
