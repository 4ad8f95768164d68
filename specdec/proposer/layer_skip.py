"""The verifier drafts without some of its layers."""

from collections.abc import Sequence

from specdec.core.errors import require
from specdec.core.narrowing import is_list
from specdec.core.protocols import TreePolicy
from specdec.lm.check_split import require_parts
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_split import LayerSplit, decoder_layers
from specdec.lm.vocabularies import require_model
from specdec.proposer.self_speculation import SelfSpeculation


class LayerSkip(SelfSpeculation):
    """Skip layers while drafting (Zhang et al. 2023, Draft & Verify, section 3.1).

    Drafts read the verifier's own cells of the committed text, in the layers that are left. What
    stands behind the first skipped layer is computed again when the draft is verified, since its
    states were others; what stands before it is not.

    Args:
        verifier: whose layers draft.
        tree: how candidates grow.
        skipped_layers: numbers of the layers that do not; None: every other one of the second half.
        temperature: of sampled drafts; None: the verifier's.

    Raises:
        UserError: there are no such layers, or the verifier's layers cannot be run apart.
    """

    def __init__(
        self,
        verifier: HFCausalLM,
        tree: TreePolicy,
        skipped_layers: Sequence[int] | None = None,
        temperature: float | None = None,
    ):
        require_model(verifier, "verifier")
        require_parts(verifier, "verifier.path")
        if skipped_layers is None:
            number = len(decoder_layers(verifier.model))
            skipped_layers = range(number // 2, number, 2)
        else:
            expected = "a list of numbers of layers, [3,4,7]"
            require(is_list(skipped_layers), "skipped_layers", skipped_layers, expected)
        self.skipped_layers = tuple(skipped_layers)
        split = LayerSplit(verifier.model, self.skipped_layers)
        super().__init__(verifier, tree, split, temperature)
