"""Multi-token prediction: a module behind the verifier's last state, one for all depths."""

from collections.abc import Sequence

from specdec.core.values import Layer
from specdec.heads.eagle import EagleHead
from specdec.proposer.eagle import Eagle


class MtpHead(EagleHead):
    """The module of MTP (DeepSeek-V3, 2024, section 2.2), shared by all depths (FastMTP, 2025).

    An `EagleHead` by other defaults: it reads the last state, and projects it and the embedding.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        steps: int = 3,
        reads: Sequence[Layer] | None = None,
        fusion: str = "project",
        norm_features: bool = False,
        norm_output: bool = False,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        verifier: dict[str, str] | None = None,
    ):
        super().__init__(
            hidden_size,
            vocab_size,
            steps,
            reads,
            fusion,
            norm_features,
            norm_output,
            num_attention_heads,
            num_key_value_heads,
            intermediate_size,
            verifier,
        )


class Mtp(Eagle):
    """Draft with a module of multi-token prediction, again and again (DeepSeek-V3, 2024).

    Args:
        heads: a module of this kind; `Mtp.load` reads a folder of it.
        verifier: whose hidden states it reads.
        tree: how candidates grow, to whatever depth.
        temperature: of sampled drafts; None: the verifier's.
        runtime: how the layer is run: eager, compiled, or auto: as the verifier's steps are.

    Raises:
        UserError: the verifier is another, or has no such layers.
    """

    kind = MtpHead
