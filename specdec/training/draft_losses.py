"""The loss of a draft model along a text, in one module, as wrappers for several processes want."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.core.unlike_vocabularies import known
from specdec.lm.hf import HFCausalLM, head_shape
from specdec.lm.unembedding import logits_of, trained_above
from specdec.training.chunked import LOGITS_AT_ONCE, chunked_sum
from specdec.training.objective import Loss
from specdec.training.position_subset import random_run


class DraftLosses(nn.Module):
    """A draft model and its loss against the verifier's distribution after the same tokens.

    Logits are compared over the tokens that both have: the embeddings of a family's models are
    padded to unlike sizes. `share` is the part of the positions that is scored while training.
    """

    def __init__(
        self, model: PreTrainedModel, verifier: HFCausalLM, loss: Loss, share: float = 1.0
    ):
        super().__init__()
        self.model = model
        self._verifier = verifier
        self._loss = loss
        self._share = share
        embeddings = model.get_input_embeddings().weight
        assert isinstance(embeddings, Tensor)
        self._draft_size = len(embeddings)
        self.width = min(head_shape(model)[0], verifier.vocab_size)

    def forward(self, hidden: Tensor, token_ids: Tensor, counted: Tensor) -> Tensor:
        """Sum the losses: verifier's states [B, T, H], token ids, counted [B, T] -> scalar."""
        return self._sum(self._loss, hidden, token_ids, counted, self._share)

    @torch.no_grad()
    def measures(self, hidden: Tensor, token_ids: Tensor, counted: Tensor, of: Loss) -> Tensor:
        """Sum the loss `of` over all counted tokens, without gradients."""
        return self._sum(of, hidden, token_ids, counted, 1.0)

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
            logits = logits_of(self.model, chunk[0])[:, : self.width].float()
            log_p = self._log_p(flat_hidden[positions[piece]]) if loss.uses_verifier else None
            return factor * loss(logits, targets[piece], log_p).sum()

        states = [self._states(token_ids).flatten(0, 1)[positions]]
        size = max(1, LOGITS_AT_ONCE // self.width)
        return chunked_sum(score, states, trained_above(self.model), size)

    def _states(self, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H of the draft]
        """Run the draft below its vocabulary head; padding stands behind, where none look."""
        # Padding of the verifier's vocabulary, which may be drawn, is read as some other token.
        read = known(token_ids, self._draft_size)
        return self.model.base_model(input_ids=read, use_cache=False).last_hidden_state

    @torch.no_grad()
    def _log_p(self, hidden: Tensor) -> Tensor:  # [n, H] -> [n, V]
        """Return the verifier's distribution at temperature 1."""
        return self._verifier.unembed(hidden)[:, : self.width].float().log_softmax(dim=-1)
