"""Train the head of EAGLE on a frozen verifier (Li et al. 2025, EAGLE-3, section 3.2)."""

from specdec.proposer.eagle import Eagle
from specdec.training.feature_training import FeatureTraining


class EagleTraining(FeatureTraining):
    """A layer that goes on from its own outputs, trained on them: training-time test.

    Args:
        states: the data, and the verifier that reads them.
        loss: of a token, or of a step.
        acceptance: how block efficiency is measured.
        decay: the loss of step s (from 0) weighs `decay^s`.
        share: the part of a batch's positions whose loss is computed.
        steps: depths that are trained; it drafts to any.
        reads: layers of the verifier that it reads; None: at a quarter, half and three quarters.
        fusion: of feature and embedding, concat or project.
        norm_features: whether each layer's states are normalised first.
        norm_output: whether the next feature is the normalised output.
        num_attention_heads: None: of about 64 numbers each.
        num_key_value_heads: None: half as many.
        intermediate_size: None: 8/3 of the hidden size.

    Raises:
        UserError: an option is out of its range, or the head could not be decoded with.
    """

    proposer = Eagle
