"""Train what reads layers of a frozen verifier, and speaks through its vocabulary head."""

from specdec.core.values import FINAL, Layer
from specdec.heads.base import DraftHeads
from specdec.heads.feature_head import FeatureHead
from specdec.lm.hf import HFCausalLM
from specdec.training.data.sources import require_no_source
from specdec.training.heads import HeadTraining


class FeatureTraining(HeadTraining):
    """Heads of whichever layers; unless `reads` names them, of those that are usual."""

    def _heads(self, verifier: dict[str, str]) -> DraftHeads:
        require_no_source(self.states.verifier, "train")
        if self._options.get("reads") is None:
            self._options["reads"] = self._usual_layers()
        return super()._heads(verifier)

    def _usual_layers(self) -> list[Layer] | None:
        return spread_over(self.states.verifier)

    def _begin(self, heads: DraftHeads) -> None:
        assert isinstance(heads, FeatureHead)
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
