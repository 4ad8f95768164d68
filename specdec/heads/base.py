"""What all heads share: a state for every token ahead, and a vocabulary projection of it."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from specdec.core.errors import require, require_int
from specdec.core.values import FINAL, Layer
from specdec.heads.correction import MarkovCorrection
from specdec.heads.on_verifier import OnVerifier
from specdec.heads.prefix import PrefixAttention

Embed = Callable[[Tensor], Tensor]  # the verifier's embeddings: [...] -> [..., H]
Unembed = Callable[[Tensor], Tensor]  # the verifier's vocabulary head: [..., H] -> [..., V]


class DraftHeads(OnVerifier):
    """What drafts from hidden states of a verifier: a state for each of K tokens ahead.

    Head i (from 0) speaks at position t about token t + 2 + i; the verifier's own head speaks
    about t + 1. `reads` names the verifier's layers whose states at t it reads, side by side.
    """

    reads: Sequence[Layer] = (FINAL,)
    reads_tokens = False  # whether a head's state depends on the tokens between t and its own
    num_heads: int  # K: of training, and of a draft unless another depth is asked for
    vocabulary_heads: nn.ModuleList  # of each head; none: all share the verifier's
    correction: MarkovCorrection | None  # of all logits, by the token before each one's own

    def __init__(self, hidden_size: int, vocab_size: int, verifier: dict[str, str] | None):
        super().__init__(hidden_size, vocab_size, verifier)
        self.correction = None

    @property
    def reads_path(self) -> bool:
        """Whether a head's q depends on the tokens between t and its own."""
        return self.reads_tokens or self.correction is not None

    @property
    def layers(self) -> Sequence[Layer]:
        """What is kept of a text to train on: what is read, and last what the teacher says."""
        return self.reads if FINAL in self.reads else (*self.reads, FINAL)

    @property
    def feature_size(self) -> int:
        """How many numbers it reads at a position."""
        return len(self.reads) * self.hidden_size

    @property
    def max_depth(self) -> int:
        """The deepest token that it can speak about."""
        return self.num_heads

    @property
    def cached_layer(self) -> nn.Module | None:
        """The decoder layer of its own whose cells follow the text, if it has one."""
        return None

    @abstractmethod
    def forced(
        self,
        features: Tensor,
        token_ids: Tensor,
        positions: Tensor,
        following_ids: Tensor,
        embed: Embed,
    ) -> list[Tensor]:
        """Read texts as they go on (teacher forcing); return the states [n, H] of each depth.

        Takes what is read along B texts, [B, T, H of each layer], and their tokens [B, T]; n
        positions of the flattened texts, and the tokens behind each of these, [n, depth + 1].
        """

    def logits(
        self, head: int, state: Tensor, previous_ids: Tensor, unembed: Unembed
    ) -> Tensor:  # [..., H], [...] -> [..., V]
        """Project the state of one head; `previous_ids` are the tokens before its own."""
        return self.corrected(self.projected(head, state, unembed), previous_ids)

    def projected(self, head: int, state: Tensor, unembed: Unembed) -> Tensor:
        """Project the state [..., H] of one head to what a correction is added to, [..., V]."""
        return self.vocabulary_heads[head](state) if self.vocabulary_heads else unembed(state)

    def corrected(self, logits: Tensor, previous_ids: Tensor) -> Tensor:  # [..., V], [...]
        """Correct logits by the tokens before; one row of logits may serve many tokens."""
        return logits if self.correction is None else logits + self.correction(previous_ids)

    def trained_above(self) -> list[nn.Parameter]:
        """Return those of its weights that `logits` trains."""
        correcting = [] if self.correction is None else self.correction.parameters()
        return [*self.vocabulary_heads.parameters(), *correcting]

    def start_from(self, unembedding: Tensor) -> None:  # [V, H]
        """Copy the verifier's vocabulary head into each head's own."""
        for weight in self.vocabulary_heads.parameters():
            weight.data.copy_(unembedding)


class Heads(DraftHeads):
    """K heads on the verifier's last hidden states, each a function of what it is given.

    With `own_vocabulary_head` each head has a projection of its own, to start from the verifier's
    (`start_from`); without, all share the verifier's.
    """

    prefix: PrefixAttention | None

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int,
        own_vocabulary_head: bool,
        verifier: dict[str, str] | None,
    ):
        super().__init__(hidden_size, vocab_size, verifier)
        require_int("num_heads", num_heads, 1)
        own = own_vocabulary_head
        require(isinstance(own, bool), "own_vocabulary_head", own, "true or false")
        self.num_heads = num_heads
        self.prefix = None
        self.vocabulary_heads = nn.ModuleList(
            nn.Linear(hidden_size, vocab_size, bias=False) for _ in range(num_heads if own else 0)
        )

    @property
    def summary(self) -> str:
        """What they are, for their card."""
        what = "predict several tokens ahead from the last hidden state of one language model"
        return f"{self.num_heads} heads that {what}"

    @property
    def cached_layer(self) -> nn.Module | None:
        """The prefix layer."""
        return self.prefix

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
        """Return a head's state, as `step` does, and with vocabulary heads its logits [..., V].

        Those are as they are before a correction.
        """
        state = self.step(head, hidden, embeddings, previous)
        return (state, self.vocabulary_heads[head](state)) if self.vocabulary_heads else (state,)

    def forced(
        self,
        features: Tensor,
        token_ids: Tensor,
        positions: Tensor,
        following_ids: Tensor,
        embed: Embed,
    ) -> list[Tensor]:
        """Ask every head at the positions; all but the prefix layer looks at one of them."""
        read = features if self.prefix is None else self.prefix(features)
        states = read.flatten(0, 1)[positions]
        known = following_ids[:, :-1]
        embeddings = states.new_empty(*known.shape, 0)  # for heads that read no tokens
        if self.reads_tokens:
            embeddings = embed(known).to(states.dtype)
        return self.states(states, embeddings, known.shape[1])

    def states(self, hidden: Tensor, embeddings: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return the first heads' states along a text: [..., H] and [..., D, H] -> D of [..., H].

        All K of them by default.
        """
        states: list[Tensor] = []
        state = hidden
        for head in range(depth or self.num_heads):
            state = self.step(head, hidden, embeddings[..., : head + 1, :], state)
            states.append(state)
        return states


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
