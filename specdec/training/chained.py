"""Train chained heads on a frozen verifier (Ankner et al. 2024, Hydra, sections 3 and 4)."""

from specdec.proposer.chained import Chained
from specdec.training.heads import HeadTraining


class ChainedTraining(HeadTraining):
    """K heads that read each other; in training the tokens they read are the text's.

    Args:
        states: the data, and the verifier that reads them.
        loss: of a token, or of a step.
        acceptance: how block efficiency is measured.
        decay: the loss of head i (from 0) weighs `decay^i`.
        share: the part of a batch's positions whose loss is computed.
        num_heads: tokens that are predicted, one a head.
        num_layers: of each head.
        own_vocabulary_head: false: all heads share the verifier's.
        link: what a head reads of those before it: token, hidden or both.
        prefix_attention: a decoder layer over the verifier's states before all heads.
        num_attention_heads: of that layer.

    Raises:
        UserError: an option is out of its range, or the heads could not be decoded with.
    """

    proposer = Chained
