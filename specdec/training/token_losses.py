"""The loss of what drafts the next token after each of a text, against the verifier's own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specdec.lm.hf import HFCausalLM
from specdec.training.chunked import LOGITS_AT_ONCE, chunked_sum
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.loss.total_variation import TotalVariation
from specdec.training.objective import Loss
from specdec.training.position_subset import random_run


class TokenLosses(nn.Module, ABC):
    """A draft and its loss against the verifier's distribution after the same tokens.

    Args:
        verifier: that teaches.
        loss: of a token.
        width: how many logits are compared, the first ones.
        share: the part of the positions that is scored while training.
    """

    def __init__(self, verifier: HFCausalLM, loss: Loss, width: int, share: float = 1.0):
        super().__init__()
        self._verifier = verifier
        self._loss = loss
        self._share = share
        self.width = width

    @abstractmethod
    def states(self, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H]
        """Read texts, with padding behind them, below where logits are made."""

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:  # [n, H] -> [n, V]
        """Make logits, a chunk at a time: those of a whole text would not fit."""

    @abstractmethod
    def trained_above(self) -> Sequence[Tensor]:
        """Return the weights that `logits` trains."""

    def forward(self, hidden: Tensor, token_ids: Tensor, counted: Tensor) -> Tensor:
        """Sum the losses: verifier's states [B, T, H], token ids, counted [B, T] -> scalar."""
        return self._sum(self._loss, hidden, token_ids, counted, self._share)

    @torch.no_grad()
    def measures(self, hidden: Tensor, token_ids: Tensor, counted: Tensor, of: Loss) -> Tensor:
        """Sum the loss `of` over all counted tokens, without gradients."""
        return self._sum(of, hidden, token_ids, counted, 1.0)

    def means(self, data: VerifierStates, device: torch.device) -> tuple[float, float]:
        """Average the loss, and the overlap, over the counted held-out tokens."""
        sums, num_counted = torch.zeros(2), 0
        for row in data.held_out.rows():
            row = row.to(device)
            read = (data.hidden(row), row.token_ids, row.counted)
            for index, loss in enumerate((self._loss, TotalVariation())):
                sums[index] += self.measures(*read, of=loss).cpu()
            # Tokens that the draft has no logit for are not scored.
            num_counted += int((row.counted & (row.token_ids < self.width))[:, 1:].sum())
        loss, distance = (sums / max(1, num_counted)).tolist()
        return loss, 1 - distance

    def _sum(
        self, loss: Loss, hidden: Tensor, token_ids: Tensor, counted: Tensor, share: float
    ) -> Tensor:
        # The logits after position t speak about token t + 1.
        ahead = nn.functional.pad(token_ids, (0, 1))[:, 1:].flatten()
        wanted = nn.functional.pad(counted, (0, 1))[:, 1:].flatten() & (ahead < self.width)
        positions = wanted.nonzero()[:, 0]
        run, factor = random_run(len(positions), share, positions.device)
        positions = positions[run]
        targets = ahead[positions]
        flat_hidden = hidden.flatten(0, 1).detach()

        def score(piece: slice, chunk: Sequence[Tensor]) -> Tensor:
            logits = self.logits(chunk[0])[:, : self.width].float()
            log_p = self._log_p(flat_hidden[positions[piece]]) if loss.uses_verifier else None
            return factor * loss(logits, targets[piece], log_p).sum()

        states = [self.states(token_ids).flatten(0, 1)[positions]]
        size = max(1, LOGITS_AT_ONCE // self.width)
        return chunked_sum(score, states, self.trained_above(), size)

    @torch.no_grad()
    def _log_p(self, hidden: Tensor) -> Tensor:  # [n, H] -> [n, V]
        """Return the verifier's distribution at temperature 1."""
        return self._verifier.unembed(hidden)[:, : self.width].float().log_softmax(dim=-1)
