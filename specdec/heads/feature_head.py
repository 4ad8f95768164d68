"""Heads that read any layers of a verifier, and speak through its vocabulary head."""

from collections.abc import Sequence

from torch import Tensor, nn

from specdec.core.errors import require
from specdec.core.values import FINAL, Layer
from specdec.heads.base import DraftHeads, Unembed
from specdec.heads.draft_layer import norm


class FeatureHead(DraftHeads):
    """Reads states of layers of the verifier, and its embeddings; all depths share one norm.

    Embeddings and vocabulary head are the verifier's, and stay there.

    Raises:
        UserError: `reads` names no layers, or in another order than they have.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int,
        reads: Sequence[Layer] | None,  # None: the last state alone
        verifier: dict[str, str] | None,
    ):
        super().__init__(hidden_size, vocab_size, verifier)
        self.num_heads = num_heads
        self.reads = (FINAL,) if reads is None else _checked(reads)
        self.vocabulary_heads = nn.ModuleList()
        self.norm_output = norm(hidden_size)

    def start_at(self, scale: float) -> None:
        """Let outputs be about as long as the verifier's last states, whose head reads them."""
        nn.init.constant_(self.norm_output.weight, scale)

    def projected(self, head: int, state: Tensor, unembed: Unembed) -> Tensor:
        """Project an output, of whatever depth."""
        return unembed(self.norm_output(state))

    def trained_above(self) -> list[nn.Parameter]:
        """Return the norm's weight, and those of a correction."""
        return [*self.norm_output.parameters(), *super().trained_above()]


def _checked(reads: Sequence[Layer]) -> tuple[Layer, ...]:
    """Refuse layers that are none, or in another order than they have in a model.

    Raises:
        UserError: so it is.
    """
    expected = "[1,3,5] or [1,3,final]: numbers of layers from below, and `final` behind them"
    require(isinstance(reads, list | tuple) and len(reads) > 0, "reads", reads, expected)
    numbers = [each for each in reads if each != FINAL]
    good = all(type(each) is int and each >= 0 for each in numbers)
    require(good, "reads", reads, expected)
    ascending = sorted(set(map(int, numbers)))
    in_order = [*ascending, FINAL] if FINAL in reads else ascending
    require(list(reads) == in_order, "reads", reads, expected)
    return tuple(reads)
