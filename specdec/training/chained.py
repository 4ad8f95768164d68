"""Train chained heads on a frozen verifier (Ankner et al. 2024, Hydra, sections 3 and 4)."""

import torch
from torch import Tensor

from specdec.core.errors import require
from specdec.heads.chained import ChainedHeads
from specdec.lm.fingerprint import described
from specdec.proposer.chained import Chained as ChainedProposer
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.heads import HeadTraining
from specdec.training.objective import Loss


class Chained(HeadTraining):
    """K heads that read each other; in training the tokens they read are the text's.

    Raises:
        UserError: the verifier's embeddings are not as wide as its last hidden states.
    """

    proposer = ChainedProposer

    def __init__(
        self,
        states: VerifierStates,
        loss: Loss,
        acceptance: Acceptance,
        num_heads: int = 4,
        num_layers: int = 1,
        own_vocabulary_head: bool = True,
        link: str = "token",
        prefix_attention: bool = False,
        num_attention_heads: int = 1,
        decay: float = 0.8,
        share: float = 1.0,
    ):
        vocab_size, hidden_size = states.verifier.vocab_size, states.verifier.state_size
        embedding = states.verifier.model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        expected = f"as wide as its last hidden states ({hidden_size})"
        fits = embedding.shape[1] == hidden_size
        require(fits, "verifier.path: width of its embeddings", embedding.shape[1], expected)
        torch.manual_seed(states.seed)
        heads = ChainedHeads(
            hidden_size,
            vocab_size,
            num_heads,
            num_layers,
            own_vocabulary_head,
            link,
            prefix_attention,
            num_attention_heads,
            described(states.verifier),
        )
        super().__init__(states, heads, loss, acceptance, decay, share)
