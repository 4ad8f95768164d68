"""Train Medusa heads on a frozen verifier (Medusa-1, Cai et al. 2024, section 2.2)."""

import torch

from specdec.heads.medusa import MedusaHeads
from specdec.lm.fingerprint import described
from specdec.proposer.medusa import Medusa as MedusaProposer
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.heads import HeadTraining
from specdec.training.objective import Loss


class Medusa(HeadTraining):
    """K heads that know nothing of each other; the loss of head i (from 0) weighs `decay^i`."""

    proposer = MedusaProposer

    def __init__(
        self,
        states: VerifierStates,
        loss: Loss,
        acceptance: Acceptance,
        num_heads: int = 4,
        num_layers: int = 1,
        own_vocabulary_head: bool = True,
        decay: float = 0.8,
        share: float = 1.0,
    ):
        vocab_size, hidden_size = states.verifier.vocab_size, states.verifier.state_size
        torch.manual_seed(states.seed)
        heads = MedusaHeads(
            hidden_size,
            vocab_size,
            num_heads,
            num_layers,
            own_vocabulary_head,
            verifier=described(states.verifier),
        )
        super().__init__(states, heads, loss, acceptance, decay, share)
