"""Train the head of EAGLE on a frozen verifier (Li et al. 2025, EAGLE-3, section 3.2)."""

from specdec.core.values import FINAL, Layer
from specdec.heads.base import DraftHeads
from specdec.heads.eagle import EagleHead
from specdec.lm.hf import HFCausalLM
from specdec.proposer.eagle import Eagle
from specdec.training.data.sources import require_no_source
from specdec.training.heads import HeadTraining


class EagleTraining(HeadTraining):
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

    def _heads(self, verifier: dict[str, str]) -> DraftHeads:
        require_no_source(self.states.verifier, "train")
        if self._options.get("reads") is None:
            self._options["reads"] = self._usual_layers()
        return super()._heads(verifier)

    def _usual_layers(self) -> list[Layer] | None:
        return spread_over(self.states.verifier)

    def _begin(self, heads: DraftHeads) -> None:
        assert isinstance(heads, EagleHead)
        last = self.states.hidden(self.states.batch(0, 1))[..., -heads.hidden_size :]
        heads.start_at(float(last.square().mean().sqrt()))


def spread_over(verifier: HFCausalLM) -> list[Layer]:
    """Return layers at a quarter, half and three quarters of a verifier; the last of a short one.

    EAGLE-3 reads a low, a middle and a high layer, too, the latter nearer to the end.
    """
    number = int(verifier.model.config.get_text_config().num_hidden_layers)
    places = sorted({max(0, number * quarter // 4 - 1) for quarter in (1, 2, 3)})
    inner = [place for place in places if place < number - 1]
    return [*inner, *([] if len(inner) == 3 else [FINAL])]
