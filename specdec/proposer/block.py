"""Block heads draft: all depths in one pass over masks (DFlash and what came of it)."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from specdec.core.errors import require
from specdec.core.on_device import on_device
from specdec.core.protocols import TreePolicy
from specdec.core.values import Context
from specdec.heads.block import BlockHead
from specdec.lm import mask
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer import CachedLayer
from specdec.proposer.feature_proposer import FeatureProposer
from specdec.proposer.growth import LogitSource
from specdec.runtime.choice import EAGER


class BlockDraft(FeatureProposer):
    """Draft with a block of masks behind the verifier's features (Chen et al. 2026, DFlash).

    A cache holds keys and values of each committed token but the last, all of true features; the
    block's own are forgotten. All nodes of a level share one row, the marginal distribution of that
    depth, unless it is corrected by the token of each node: a token's q is what it was drawn from.
    A causal block has as many rows as the tree has levels, another as many as it was trained with.

    Args:
        heads: a module of this kind; `BlockDraft.load` reads a folder of it.
        verifier: whose hidden states it reads.
        tree: how candidates grow, one row a level.
        temperature: of sampled drafts; None: the verifier's.
        runtime: how the text is taken in, eager, compiled, or auto: as the verifier's steps are
            run. The block itself is eager.

    Raises:
        UserError: the tree is deeper than the block, or the verifier is another.
    """

    kind = BlockHead
    heads: BlockHead

    def __init__(
        self,
        heads: BlockHead,
        verifier: HFCausalLM,
        tree: TreePolicy,
        temperature: float | None = None,
        runtime: str = EAGER,
    ):
        super().__init__(heads, verifier, tree, temperature, runtime)
        embedding = verifier.model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        expected = f"{heads.hidden_size}, as wide as its last hidden states"
        fits = embedding.shape[1] == heads.hidden_size
        require(fits, "verifier.path: width of its embeddings", embedding.shape[1], expected)

    def _open_cells(self) -> None:
        heads = self.heads
        self._cells = CachedLayer(heads.remembered, "the text of BlockHead", len(heads.blocks))

    @property
    def _text(self) -> CachedLayer:
        """Its cells, which hold the keys and values of each state that was read."""
        assert self._cells is not None
        return self._cells

    def _source(self, contexts: Sequence[Context]) -> LogitSource:
        """Go through the blocks, before any token is known."""
        roots = on_device([[one.token_ids[-1]] for one in contexts], self.verifier.device)
        found = self._block([one.row for one in contexts], roots[:, 0])
        rows = self.heads.rows(found, self.max_depth)
        return self._at_once(self._said(rows), roots)

    def _said(self, rows: Tensor) -> Iterator[Tensor]:  # [B, D, H] -> of [B, 1, V]
        for depth, state in enumerate(rows.split(1, dim=1)):
            yield self.heads.projected(depth, state, self.verifier.unembed)

    def _block(self, rows: Sequence[int], roots: Tensor) -> Tensor:  # [B] -> [B, S, H]
        """Go through a block behind each row's text, and leave the text as it was."""
        embeddings = self.verifier.embed(roots).to(self._dtype)
        hidden = self.heads.slots(embeddings, self.max_depth)
        lengths = [self._text.length(row) for row in rows]
        seen = mask.causal(lengths, hidden.shape[1], hidden.device)
        if not self.heads.is_causal:
            seen = seen[:, -1:].expand(-1, hidden.shape[1], -1)
        found = self._text.extend(rows, hidden, attend=seen, layer=self.heads.drafted)
        for row, length in zip(rows, lengths, strict=True):
            self._text.truncate(row, length)
        return found
