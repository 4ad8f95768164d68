"""Medusa heads: several next tokens at once from one hidden state, each head by itself."""

from torch import Tensor, nn

from specdec.core.errors import require_int
from specdec.heads.base import Heads, residual_blocks
from specdec.heads.correction import correction_of
from specdec.proposer.heads import HeadsProposer


class MedusaHeads(Heads):
    """K heads of L blocks `x + SiLU(W x + b)` (Cai et al. 2024, Medusa, section 2.1).

    No head knows the tokens that the heads before it were asked for. With `correction` `markov`
    the logits do, of the last one: W2 W1[x] of the token x before is added, where W1 and W2 are
    [V, rank] and all heads' own; see `MarkovCorrection`.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int = 4,
        num_layers: int = 1,
        own_vocabulary_head: bool = True,
        correction: str = "none",
        rank: int = 32,
        verifier: dict[str, str] | None = None,
    ):
        super().__init__(hidden_size, vocab_size, num_heads, own_vocabulary_head, verifier)
        least = 0 if own_vocabulary_head else 1  # or nothing could be trained
        require_int("num_layers", num_layers, least)
        # Blocks of its own for every head and layer: `[block] * n` would be one block n times.
        self.blocks = nn.ModuleList(
            residual_blocks(hidden_size, num_layers) for _ in range(num_heads)
        )
        self.correction = correction_of(correction, vocab_size, rank)

    def step(self, head: int, hidden: Tensor, embeddings: Tensor, previous: Tensor) -> Tensor:
        """Return the head's state; it depends on `hidden` alone."""
        return self.blocks[head](hidden)


class Medusa(HeadsProposer):
    """K heads that know nothing of each other's tokens (Cai et al. 2024).

    All nodes of a level share one distribution, that of the level's head, unless it is corrected
    by the token of each node.

    Args:
        heads: a module of this kind; `Medusa.load` reads a folder of them.
        verifier: whose hidden states they read.
        tree: how candidates grow, one head a level.
        temperature: of sampled drafts; None: the verifier's.
        runtime: how heads are run: eager, compiled, or auto: as the verifier's steps are.

    Raises:
        UserError: the tree is deeper than there are heads, or the verifier is another.
    """

    kind = MedusaHeads
