"""What heads compute, written as functions of tensors: what can be compiled."""

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.core.draft_chain import DraftChain
from specdec.heads.base import Heads
from specdec.lm.hf import HFCausalLM
from specdec.lm.unembedding import Unembedding
from specdec.runtime.program import Function


def all_levels(heads: Heads, depth: int) -> Function:
    """Write what returns the logits [B, 1, V] of heads that read no tokens, all at once.

    Without vocabulary heads it returns their states [B, 1, H].
    """

    def levels(hidden: Tensor) -> tuple[Tensor, ...]:  # [B, 1, H]
        found: list[Tensor] = []
        state = hidden
        for head in range(depth):
            state, *logits = heads.level(head, hidden, hidden[:, :, None], state)
            found.append(logits[0] if logits else state)
        return tuple(found)

    return levels


def one_level(heads: Heads, head: int) -> Function:
    """Write what returns what `Heads.level` does."""

    def level(hidden: Tensor, embeddings: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        return heads.level(head, hidden, embeddings, previous)

    return level


class ChainOfHeads:
    """A whole chain: each head's token is drawn, and what the next one reads.

    Args:
        heads: which draft.
        verifier: whose embeddings they read, and whose vocabulary head they may share.
        chain: how each token is drawn.
    """

    def __init__(self, heads: Heads, verifier: HFCausalLM, chain: DraftChain):
        self._heads = heads
        self._embed = verifier.model.get_input_embeddings()
        self._unembed = None if heads.vocabulary_heads else Unembedding(verifier.model)
        self._chain = chain

    @property
    def drafted(self) -> Function:
        """What returns logits and q [B, depth, V], and tokens [B, depth].

        It takes states [B, 1, H], the tokens [B, 1] behind them, and uniforms [B, depth] float64.
        """

        def draft(hidden: Tensor, roots: Tensor, uniforms: Tensor) -> tuple[Tensor, ...]:
            def drawn(head: int, logits: Tensor) -> tuple[Tensor, Tensor]:
                return self._chain.drawn(logits, uniforms[:, head : head + 1])

            return self._along(hidden, roots, drawn)

        return draft

    def expected(self, inputs: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what should have been found, where these are the tokens that were drawn."""
        hidden, roots, uniforms = inputs
        logits, probs, token_ids = found

        def same(head: int, _: Tensor) -> tuple[Tensor, Tensor]:
            here = slice(head, head + 1)
            return probs[:, here], token_ids[:, here]

        said, *_ = self._along(hidden, roots, same)
        return said, *self._chain.drawn(logits, uniforms)

    def _along(
        self,
        hidden: Tensor,
        path: Tensor,
        drawn: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, ...]:
        """Ask head by head; `drawn` makes q [B, 1, V] and tokens [B, 1] of its logits."""
        levels: list[tuple[Tensor, ...]] = []
        state = hidden
        for head in range(self._chain.depth):
            embeddings = self._read(path, hidden)
            state, *own = self._heads.level(head, hidden, embeddings, state)
            logits = own[0] if self._unembed is None else self._unembed(state)
            logits = self._heads.corrected(logits, path[:, -1:])
            probs, token_ids = drawn(head, logits)
            levels.append((logits, probs, token_ids))
            path = torch.cat([path, token_ids], dim=1)
        return tuple(torch.cat(each, dim=1) for each in zip(*levels, strict=True))

    def _read(self, path: Tensor, hidden: Tensor) -> Tensor:  # [B, n] -> [B, 1, n, H]
        if not self._heads.reads_tokens:
            return hidden[:, :, None]
        embeddings: Tensor = self._embed(path)
        return embeddings[:, None].to(hidden.dtype)
