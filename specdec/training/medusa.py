"""Train Medusa heads on a frozen verifier (Medusa-1, Cai et al. 2024, section 2.2)."""

from specdec.proposer.medusa import Medusa
from specdec.training.heads import HeadTraining


class MedusaTraining(HeadTraining):
    """K heads that know nothing of each other, or of the one token before.

    Args:
        states: the data, and the verifier that reads them.
        loss: of a token, or of a step.
        acceptance: how block efficiency is measured.
        decay: the loss of head i (from 0) weighs `decay^i`.
        share: the part of a batch's positions whose loss is computed.
        num_heads: tokens that are predicted, one a head.
        num_layers: of each head.
        own_vocabulary_head: false: all heads share the verifier's.
        correction: of the logits by the token before, in training the text's: none or markov.
        rank: of that correction.

    Raises:
        UserError: an option is out of its range, or the heads could not be decoded with.
    """

    proposer = Medusa
