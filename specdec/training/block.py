"""Train block heads on a frozen verifier (Chen et al. 2026, DFlash, and what came of it)."""

from specdec.proposer.block import BlockDraft
from specdec.training.feature_training import FeatureTraining
from specdec.training.position_subset import random_places


class BlockTraining(FeatureTraining):
    """A block of masks in one pass, behind random places of a text.

    Train as many tokens as you will ever draft. With `correction` the text's own tokens stand
    before each row's (teacher forcing).

    Args:
        states: the data, and the verifier that reads them.
        loss: of a token, or of a step.
        acceptance: how block efficiency is measured.
        decay: the loss of depth i (from 0) weighs `decay^i`; 1: all alike.
        share: the part of a batch's positions that blocks begin behind, anew in each batch.
        num_heads: tokens that are predicted, each a row of the block.
        num_layers: of the block.
        reads: layers of the verifier that it reads; None: at a quarter, half and three quarters.
        mask: causal, or bidirectional.
        labels: shifted, or in_place.
        correction: of the logits by the token before, in training the text's: none or markov.
        rank: of that correction.
        num_attention_heads: None: of about 64 numbers each.
        num_key_value_heads: None: half as many.
        intermediate_size: None: 8/3 of the hidden size.

    Raises:
        UserError: an option is out of its range, or the head could not be decoded with.
    """

    proposer = BlockDraft
    subset = random_places
