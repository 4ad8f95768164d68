"""What all heads share: a state for every token ahead, and a vocabulary projection of it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from specdec.core.errors import require, require_int
from specdec.heads.card import CARD
from specdec.heads.prefix import PrefixAttention
from specdec.lm.folder import proposer_of

Unembed = Callable[[Tensor], Tensor]  # the verifier's vocabulary head: [..., H] -> [..., V]


class Heads(
    nn.Module,
    PyTorchModelHubMixin,
    ABC,
    library_name="specdec-lab",
    tags=["speculative-decoding"],
    model_card_template=CARD,
):
    """K heads on the verifier's last hidden states.

    Head i (from 0) speaks at position t about token t + 2 + i; the verifier's own head speaks
    about t + 1. With `own_vocabulary_head` each head has a projection of its own, to start from the
    verifier's (`start_from`); without, all share the verifier's.
    """

    reads_tokens = False  # whether a head's q depends on the tokens between t and its own
    prefix: PrefixAttention | None

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int,
        own_vocabulary_head: bool,
        verifier: dict[str, str] | None,
    ):
        super().__init__()
        for name, value in (
            ("hidden_size", hidden_size),
            ("vocab_size", vocab_size),
            ("num_heads", num_heads),
        ):
            require_int(name, value, 1)
        own = own_vocabulary_head
        require(isinstance(own, bool), "own_vocabulary_head", own, "true or false")
        made_with = self._hub_mixin_config  # which is what `save_pretrained` writes
        assert isinstance(made_with, dict)
        self._hub_mixin_config = {**made_with, "kind": type(self).__name__}
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.num_heads = num_heads
        self.prefix = None
        self.verifier = verifier  # whose states it was trained on; see `specdec.lm.fingerprint`
        self.vocabulary_heads = nn.ModuleList(
            nn.Linear(hidden_size, vocab_size, bias=False) for _ in range(num_heads if own else 0)
        )

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Write the README that a folder of heads has; with lines about the training."""
        config = dict(self._hub_mixin_config) if isinstance(self._hub_mixin_config, dict) else {}
        kind = str(config.pop("kind"))
        config.pop("verifier", None)
        missing = dict.fromkeys(("path", "dtype", "config", "tokenizer", "weights"), "unknown")
        verifier = {**missing, "commit": "", **(self.verifier or {})}
        card = super().generate_model_card(
            kind=kind,
            proposer=proposer_of(kind),
            verifier=verifier,
            options=config,
            training=kwargs.get("training", {}),
        )
        if is_on_hub(verifier["path"]):  # the Hub takes no folder of this machine for a name
            data: Any = card.data  # whose fields depend on the kind of card
            data.base_model = verifier["path"]
        return card

    def belong_to(self, verifier: dict[str, str]) -> None:
        """Note another verifier as the one that the heads were trained on; it is saved with them.

        Takes the fingerprint of the verifier (see `specdec.lm.fingerprint`).
        """
        self.verifier = verifier
        made_with = self._hub_mixin_config
        assert isinstance(made_with, dict)
        self._hub_mixin_config = {**made_with, "verifier": verifier}

    def start_from(self, unembedding: Tensor) -> None:  # [V, H]
        """Copy the verifier's vocabulary head into each head's own."""
        for weight in self.vocabulary_heads.parameters():
            weight.data.copy_(unembedding)

    @abstractmethod
    def step(self, head: int, hidden: Tensor, embeddings: Tensor, previous: Tensor) -> Tensor:
        """Return the state [..., H] that head `head` projects.

        Takes the verifier's state `hidden` [..., H] at t (behind the prefix layer, if there is
        one), the embeddings [..., head + 1, H] of the tokens t + 1 ... t + 1 + head, and the state
        of the head before (of head 0: `hidden`).
        """

    def level(
        self, head: int, hidden: Tensor, embeddings: Tensor, previous: Tensor
    ) -> tuple[Tensor, ...]:
        """Return a head's state, as `step` does, and with vocabulary heads its logits [..., V]."""
        state = self.step(head, hidden, embeddings, previous)
        return (state, self.vocabulary_heads[head](state)) if self.vocabulary_heads else (state,)

    def states(self, hidden: Tensor, embeddings: Tensor) -> list[Tensor]:
        """Return all heads' states along a text: [..., H] and [..., K, H] -> K times [..., H]."""
        states: list[Tensor] = []
        state = hidden
        for head in range(self.num_heads):
            state = self.step(head, hidden, embeddings[..., : head + 1, :], state)
            states.append(state)
        return states

    def logits(self, head: int, state: Tensor, unembed: Unembed) -> Tensor:  # [..., H] -> [..., V]
        """Project the state of one head."""
        return self.vocabulary_heads[head](state) if self.vocabulary_heads else unembed(state)


def is_on_hub(path: str) -> bool:
    """Whether a verifier's path is a name on the Hub, as far as a look at it tells."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not Path(path).exists()


class ResidualBlock(nn.Module):
    """R x + SiLU(W x + b); R is the identity, or cuts a wider input down to H.

    W and b are zero at first, and R takes the first H numbers of its input, so that a fresh block
    returns those.
    """

    def __init__(self, hidden_size: int, input_size: int | None = None):
        super().__init__()
        self.linear = nn.Linear(input_size or hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.residual: nn.Module = nn.Identity()
        if input_size is not None:
            self.residual = nn.Linear(input_size, hidden_size, bias=False)
            with torch.no_grad():
                self.residual.weight.copy_(torch.eye(hidden_size, input_size))

    def forward(self, x: Tensor) -> Tensor:  # [..., input size] -> [..., H]
        """Apply the block."""
        return self.residual(x) + nn.functional.silu(self.linear(x))


def residual_blocks(
    hidden_size: int, num_layers: int, input_size: int | None = None
) -> nn.Sequential:
    """Stack distinct blocks, of which the first may have a wider input."""
    sizes = [input_size, *[None] * (num_layers - 1)] if num_layers else []
    return nn.Sequential(*(ResidualBlock(hidden_size, size) for size in sizes))
