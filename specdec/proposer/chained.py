"""Chained heads: each head also reads what the heads before it gave."""

import torch
from torch import Tensor, nn

from specdec.core.errors import require, require_int
from specdec.heads.base import Heads, residual_blocks
from specdec.heads.prefix import PrefixAttention
from specdec.proposer.heads import HeadsProposer

LINKS = ("token", "hidden", "both")


class ChainedHeads(Heads):
    """Sequentially dependent heads (Ankner et al. 2024, Hydra, section 3).

    `link` is what head i reads beside the verifier's state h_t:

    * `token`: the embeddings of the tokens t + 1 ... t + 1 + i, width (i + 2) H (eq. 2);
    * `hidden`: the state of head i - 1, width 2 H (head 0: h_t alone). It knows no token, so
      that all candidates of a level share one distribution, as Medusa's do;
    * `both`: the embeddings and then the state, width (i + 3) H (head 0: 2 H).

    `prefix_attention` puts one decoder layer before all heads, and `num_layers` deepens their MLPs:
    together what the paper calls Hydra++. At first every head equals the verifier's own head.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int = 4,
        num_layers: int = 1,
        own_vocabulary_head: bool = True,
        link: str = "token",
        prefix_attention: bool = False,
        num_attention_heads: int = 1,
        verifier: dict[str, str] | None = None,
    ):
        super().__init__(hidden_size, vocab_size, num_heads, own_vocabulary_head, verifier)
        require_int("num_layers", num_layers, 1)
        require(link in LINKS, "link", link, "one of " + ", ".join(LINKS))
        given = prefix_attention
        require(isinstance(given, bool), "prefix_attention", given, "true or false")
        self.reads_tokens = link in ("token", "both")
        self._reads_state = link in ("hidden", "both")
        self.prefix = (
            PrefixAttention(hidden_size, num_attention_heads) if prefix_attention else None
        )
        self.blocks = nn.ModuleList(
            residual_blocks(hidden_size, num_layers, self._num_inputs(head) * hidden_size)
            for head in range(num_heads)
        )

    def _num_inputs(self, head: int) -> int:
        tokens = head + 1 if self.reads_tokens else 0
        return 1 + tokens + int(self._reads_state and head > 0)

    def step(self, head: int, hidden: Tensor, embeddings: Tensor, previous: Tensor) -> Tensor:
        """Return the head's state, from the verifier's state and what `link` names."""
        inputs = [hidden]
        if self.reads_tokens:
            inputs.append(embeddings.flatten(-2))
        if self._reads_state and head > 0:
            inputs.append(previous)
        return self.blocks[head](torch.cat(inputs, dim=-1))


class Chained(HeadsProposer):
    """K sequentially dependent heads (Ankner et al. 2024, Hydra).

    With prefix attention a cache of the verifier's states follows the committed text.

    Args:
        heads: a module of this kind; `Chained.load` reads a folder of them.
        verifier: whose hidden states they read.
        tree: how candidates grow, one head a level.
        temperature: of sampled drafts; None: the verifier's.
        runtime: how heads are run: eager, compiled, or auto: as the verifier's steps are.

    Raises:
        UserError: the tree is deeper than there are heads, or the verifier is another.
    """

    kind = ChainedHeads
