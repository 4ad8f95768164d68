"""Medusa heads: several next tokens at once from one hidden state, each head by itself."""

from collections.abc import Callable

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from specdec.core.errors import require, require_int

Unembed = Callable[[Tensor], Tensor]  # the verifier's vocabulary head: [..., H] -> [..., V]


class ResidualBlock(nn.Module):
    """x + SiLU(W x + b), with W and b zero at first, so that a fresh block changes nothing."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:  # [..., H] -> [..., H]
        """Apply the block."""
        return x + nn.functional.silu(self.linear(x))


class MedusaHeads(nn.Module, PyTorchModelHubMixin):
    """K heads of L residual blocks on the verifier's last hidden state (Cai et al. 2024, eq. 1).

    Head i (from 0) reads the state at position t and predicts token t + 2 + i; the verifier's own
    head predicts t + 1. With `own_vocabulary_head` each head has a projection of its own, to start
    from the verifier's (`start_from`); without, all share the verifier's.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int = 4,
        num_layers: int = 1,
        own_vocabulary_head: bool = True,
        verifier: dict[str, str] | None = None,
    ):
        super().__init__()
        for name, value, minimum in (
            ("hidden_size", hidden_size, 1),
            ("vocab_size", vocab_size, 1),
            ("num_heads", num_heads, 1),
            ("num_layers", num_layers, 0),
        ):
            require_int(f"heads.{name}", value, minimum)
        own = own_vocabulary_head
        require(isinstance(own, bool), "heads.own_vocabulary_head", own, "true or false")
        self.num_heads = num_heads
        self.vocab_size = vocab_size
        self.verifier = verifier  # whose states it was trained on; see `specdec.lm.fingerprint`
        # A list of its own for every head and layer: `[block] * n` would be one block n times.
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(hidden_size) for _ in range(num_layers)))
            for _ in range(num_heads)
        )
        self.vocabulary_heads = nn.ModuleList(
            nn.Linear(hidden_size, vocab_size, bias=False) for _ in range(num_heads if own else 0)
        )

    def start_from(self, unembedding: Tensor) -> None:  # [V, H]
        """Copy the verifier's vocabulary head into each head's own."""
        for weight in self.vocabulary_heads.parameters():
            weight.data.copy_(unembedding)

    def states(self, hidden: Tensor) -> list[Tensor]:  # [..., H] -> K times [..., H]
        """Return what each head's projection reads."""
        return [block(hidden) for block in self.blocks]

    def logits(self, head: int, state: Tensor, unembed: Unembed) -> Tensor:  # [..., H] -> [..., V]
        """Project the state of one head."""
        return self.vocabulary_heads[head](state) if self.vocabulary_heads else unembed(state)

    def forward(self, hidden: Tensor, unembed: Unembed) -> Tensor:  # [..., H] -> [..., K, V]
        """Predict with all heads."""
        states = enumerate(self.states(hidden))
        return torch.stack([self.logits(head, state, unembed) for head, state in states], dim=-2)
