"""The losses of heads and of the verifier that is tuned with them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specdec.lm.hf import HFCausalLM
from specdec.lm.unembedding import trained_above
from specdec.training.chunked import LOGITS_AT_ONCE, chunked_sum
from specdec.training.head_losses import HeadLosses
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.tuning import Tuned


class JointLosses(nn.Module):
    """The heads' losses and the tuned verifier's, in one module.

    Of the verifier it registers what is trained, so that nothing else is saved in checkpoints.
    """

    def __init__(
        self,
        head_losses: HeadLosses,
        original: HFCausalLM,
        tuned: Tuned,
        weights: tuple[float, float, float],
    ):
        super().__init__()
        self.head_losses = head_losses
        # Names of parameters may not hold dots.
        trained = {name.replace(".", "/"): weight for name, weight in tuned.trained().items()}
        self.verifier = nn.ParameterDict(trained)
        self._original = original
        self._tuned = tuned
        self._heads_weight, self._self_distillation, self._language_modeling = weights

    def forward(
        self, token_ids: Tensor, counted: Tensor, original: Tensor, heads_only: bool
    ) -> Tensor:
        """Sum the losses: token ids and counted [B, T], the original's states [B, T, H] -> scalar.

        With `heads_only` the verifier learns nothing, and so is still the original.
        """
        # Every parameter has a gradient, if of zeros: several processes wait for all of them.
        total = torch.stack([weight.flatten()[:0].sum() for weight in self.verifier.values()]).sum()
        hidden = original if heads_only else self._tuned.hidden(token_ids)
        # Whose embeddings and vocabulary head the heads may share: they would be trained, too.
        verifier = self._original if heads_only else self._tuned.lm
        heads = self.head_losses(verifier, hidden, token_ids, counted)
        total = total + self._heads_weight * heads
        if self._self_distillation > 0 and not heads_only:
            kl = self.kl(original, hidden, token_ids, counted)
            total = total + self._self_distillation * kl
        if self._language_modeling > 0 and not heads_only:
            cross_entropy = self._next_token(CrossEntropy(), None, hidden, token_ids, counted)
            total = total + self._language_modeling * cross_entropy
        return total

    def kl(self, original: Tensor, hidden: Tensor, token_ids: Tensor, counted: Tensor) -> Tensor:
        """Sum KL(original || tuned) over the counted tokens, in nats.

        Takes both verifiers' states [B, T, H], token ids and counted [B, T].
        """
        return self._next_token(KL(), original, hidden, token_ids, counted)

    def _next_token(
        self,
        loss: CrossEntropy | KL,
        original: Tensor | None,  # [B, T, H]
        hidden: Tensor,  # [B, T, H]
        token_ids: Tensor,  # [B, T]
        counted: Tensor,  # [B, T]
    ) -> Tensor:
        """Sum a loss of the tuned verifier's own tokens; its logits exist a chunk at a time."""
        wanted = counted[:, 1:]
        targets = token_ids[:, 1:][wanted]
        original_states = None if original is None else original[:, :-1][wanted]

        def score(piece: slice, chunk: Sequence[Tensor]) -> Tensor:
            log_p = None
            if original_states is not None:
                with torch.no_grad():
                    log_p = (
                        self._original.unembed(original_states[piece]).float().log_softmax(dim=-1)
                    )
            logits = self._tuned.lm.unembed(chunk[0]).float()
            return loss(logits, targets[piece], log_p).sum()

        trained = trained_above(self._tuned.lm.model)
        size = max(1, LOGITS_AT_ONCE // self._tuned.lm.vocab_size)
        return chunked_sum(score, [hidden[:, :-1][wanted]], trained, size)
