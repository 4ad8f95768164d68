"""Feature chains draft: one decoder layer that goes on from its own outputs (EAGLE, MTP)."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.unlike_vocabularies import fitted
from specdec.core.values import Context, Proposal
from specdec.heads.eagle import EagleHead
from specdec.lm.layer import CachedLayer
from specdec.proposer.feature_proposer import FeatureProposer, below
from specdec.proposer.frontier_cells import FrontierCells
from specdec.proposer.growth import LogitSource


class Eagle(FeatureProposer):
    """Draft with a layer over the verifier's features and the tokens behind them.

    A cache holds a row for each committed token but the last: all of true features, since those of
    accepted tokens are read when a step begins, where the last one's output is needed anyway. What
    is drafted behind them is forgotten. Each token's q is that of the path to it, so that a drawn
    chain is decided by any rule for chains, and `tree=dynamic` is EAGLE-2 (Li et al. 2024).

    Args:
        heads: a module of this kind; `Eagle.load` reads a folder of it.
        verifier: whose hidden states it reads.
        tree: how candidates grow, to whatever depth.
        temperature: of sampled drafts; None: the verifier's.
        runtime: how the layer is run: eager, compiled, or auto: as the verifier's steps are.

    Raises:
        UserError: the verifier is another, or has no such layers.
    """

    kind = EagleHead
    heads: EagleHead

    @property
    def _rows(self) -> CachedLayer:
        """Its cells, which hold a row for each state that was read."""
        assert self._cells is not None
        return self._cells

    def _inputs(self, context: Context) -> Tensor:  # [n, 2 H]
        """Pair each new feature with the token behind it."""
        features = self._features(context)
        behind = list(context.token_ids[-len(features) :])
        tokens = on_device(behind, features.device)
        return self.heads.first(features, self._embedded(tokens))

    def _embedded(self, token_ids: Tensor) -> Tensor:  # [...] -> [..., H]
        return self.verifier.embed(token_ids).to(next(self.heads.parameters()).dtype)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        lengths = {context.row: self._rows.length(context.row) for context in contexts}
        proposals = super()._grow(contexts)
        for row, length in lengths.items():
            self._rows.truncate(row, length)
        return proposals

    def _source(self, contexts: Sequence[Context]) -> LogitSource:
        """Read the level that was chosen last, each token with the output above it."""
        rows = [context.row for context in contexts]
        places = FrontierCells([self._rows.length(row) for row in rows], self.verifier.device)
        output = self._last_outputs(contexts)[:, None]  # [B, 1, H]
        while True:
            logits = self.heads.projected(0, output, self.verifier.unembed)
            frontier = yield fitted(logits, self._vocab_size)
            where = places.add(frontier)
            above = below(output, frontier.parents)
            both = self.heads.next(above, self._embedded(frontier.token_ids))
            output = self._tried(partial(self._rows.extend, rows, both, *where))
