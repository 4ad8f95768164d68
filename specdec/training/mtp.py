"""Train multi-token prediction beside a finished verifier (FastMTP, Cai et al. 2025)."""

from specdec.core.values import Layer
from specdec.proposer.mtp import Mtp
from specdec.training.eagle import EagleTraining


class MtpTraining(EagleTraining):
    """A module over the verifier's last state, trained on its own outputs, one for all depths.

    DeepSeek-V3 (2024) trains such modules with the verifier; here the verifier stays as it is.

    Args:
        states: the data, and the verifier that reads them.
        loss: of a token, or of a step.
        acceptance: how block efficiency is measured.
        decay: the loss of step s (from 0) weighs `decay^s`.
        share: the part of a batch's positions whose loss is computed.
        steps: depths that are trained; it drafts to any.
        reads: layers of the verifier that it reads; None: the last state.
        fusion: of feature and embedding, concat or project.
        norm_features: whether each layer's states are normalised first.
        norm_output: whether the next feature is the normalised output.
        num_attention_heads: None: of about 64 numbers each.
        num_key_value_heads: None: half as many.
        intermediate_size: None: 8/3 of the hidden size.

    Raises:
        UserError: an option is out of its range, or the head could not be decoded with.
    """

    proposer = Mtp

    def _usual_layers(self) -> list[Layer] | None:
        return None
