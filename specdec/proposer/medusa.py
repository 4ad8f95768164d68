"""Medusa heads propose a tree of their likeliest tokens from the verifier's last hidden state."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.errors import UserError, require
from specdec.core.protocols import TreePolicy
from specdec.core.values import Context, Draw, Layer, Proposal, Verdict
from specdec.heads.medusa import MedusaHeads
from specdec.lm.fingerprint import require_trained_on
from specdec.lm.hf import HFCausalLM
from specdec.proposer.growth import LogitSource, grow, propose_where


class Medusa:
    """Grow trees from K heads that know nothing of each other's tokens (Cai et al. 2024).

    All nodes of a level share one law, that of the level's head: head i speaks about the tokens
    i + 1 below the root.

    Raises:
        UserError: the tree is deeper than there are heads.
    """

    layers: Sequence[Layer] = ("final",)

    def __init__(self, heads: MedusaHeads, verifier: HFCausalLM, tree: TreePolicy):
        if tree.max_depth > heads.num_heads:
            raise UserError(f"tree: {tree.max_depth} levels, but there are {heads.num_heads} heads")
        self._heads = heads
        self._verifier = verifier
        self._tree = tree

    @classmethod
    def load(
        cls, path: str | None, verifier: HFCausalLM, tree: TreePolicy, force: bool = False
    ) -> "Medusa":
        """Load what `train=medusa` saved.

        Raises:
            UserError: no heads at `path`, or heads that were trained on another verifier and no
                `force`.
        """
        require(isinstance(path, str) and bool(path), "proposer.path", path, "a folder of heads")
        assert path is not None
        try:
            heads = MedusaHeads.from_pretrained(path, strict=True)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"proposer.path={path!r}: no Medusa heads ({reason})") from None
        require_trained_on(verifier, heads.verifier, f"proposer.path={path!r}", force)
        heads = heads.to(verifier.device, verifier.model.dtype).eval()
        return cls(heads, verifier, tree)

    @property
    def draw(self) -> Draw:
        """Chosen by the tree."""
        return self._tree.draw

    @property
    def max_depth(self) -> int:
        """Chosen by the tree."""
        return self._tree.max_depth

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Nothing is kept from step to step."""

    def reset(self, contexts: Sequence[Context]) -> None:
        """Nothing is kept from step to step."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Read the hidden state below the last committed token of each request."""
        return propose_where(_has_state, contexts, self._grow)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        return grow(self._tree, contexts, self._read(contexts))

    def _read(self, contexts: Sequence[Context]) -> LogitSource:
        """Compute all heads at once; each level below repeats its head's law for every node."""
        hidden = torch.stack([context.features["final"][-1] for context in contexts])  # [B, H]
        logits: Tensor = self._heads(hidden, self._verifier.unembed)  # [B, K, V]
        level = yield logits[:, :1]
        for head in range(1, self._heads.num_heads):
            level = yield logits[:, head : head + 1].expand(-1, len(level.parents), -1)

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Nothing is kept from step to step."""


def _has_state(context: Context) -> bool:
    """A prompt of one token has no hidden state yet."""
    return len(context.features["final"]) > 0
