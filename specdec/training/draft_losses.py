"""The loss of a draft model along a text, in one module, as wrappers for several processes want."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.unlike_vocabularies import known
from specdec.lm.hf import HFCausalLM, head_shape
from specdec.lm.unembedding import logits_of, trained_above
from specdec.training.objective import Loss
from specdec.training.token_losses import TokenLosses


class DraftLosses(TokenLosses):
    """A draft model and its loss against the verifier's distribution after the same tokens.

    Logits are compared over the tokens that both have: the embeddings of a family's models are
    padded to unlike sizes.
    """

    def __init__(
        self, model: PreTrainedModel, verifier: HFCausalLM, loss: Loss, share: float = 1.0
    ):
        super().__init__(verifier, loss, min(head_shape(model)[0], verifier.vocab_size), share)
        self.model = model
        embeddings = model.get_input_embeddings().weight
        assert isinstance(embeddings, Tensor)
        self._draft_size = len(embeddings)

    def states(self, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H of the draft]
        """Run the draft below its vocabulary head; padding stands behind, where none look."""
        # Padding of the verifier's vocabulary, which may be drawn, is read as some other token.
        read = known(token_ids, self._draft_size)
        return self.model.base_model(input_ids=read, use_cache=False).last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """Run what is above."""
        return logits_of(self.model, states)

    def trained_above(self) -> Sequence[Tensor]:
        """The vocabulary head's weights."""
        return trained_above(self.model)
