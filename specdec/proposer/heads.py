"""Heads on the verifier's last hidden state draft: what all kinds of such heads share."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from specdec.core.draft_chain import DraftChain, DraftedChain
from specdec.core.on_device import on_device
from specdec.core.unlike_vocabularies import fitted
from specdec.core.values import Context, Proposal
from specdec.heads.base import Heads
from specdec.proposer.feature_proposer import FeatureProposer, below
from specdec.proposer.growth import LogitSource
from specdec.proposer.head_programs import ChainOfHeads, all_levels, one_level
from specdec.proposer.tree_proposer import chains
from specdec.runtime.choice import function_of
from specdec.runtime.program import Expected, Function


class HeadsProposer(FeatureProposer):
    """Grow trees level by level, one head a level, from the state below the last committed token.

    Head i speaks about the tokens i + 1 below the root. Sampled drafts (`tree=chain`) are drawn
    like the verifier's text at `temperature`, by default the verifier's.

    Raises:
        UserError: the tree is deeper than there are heads, or names a rank beyond the vocabulary.
    """

    heads: Heads

    def _run_by(self, runtime: str) -> None:
        super()._run_by(runtime)
        self._levels = self._levels_by(runtime)
        self._chains = dict[DraftChain, Function]()

    def _levels_by(self, runtime: str) -> list[Function]:
        """Return what runs the first heads, one for each; one for all if they read no tokens."""
        heads, depth = self.heads, self.tree.max_depth
        if not heads.reads_tokens:
            return [self._function(runtime, all_levels(heads, depth), "the heads")]
        return [
            self._function(runtime, one_level(heads, head), f"head {head}") for head in range(depth)
        ]

    def _chain_by(self, chain: DraftChain) -> Function:
        """Return what drafts such chains whole."""
        if chain not in self._chains:
            of_heads = ChainOfHeads(self.heads, self.verifier, chain)
            self._chains[chain] = self._function(
                self.runtime, of_heads.drafted, "the chain", of_heads.expected
            )
        return self._chains[chain]

    def _function(
        self, runtime: str, function: Function, called: str, expected: Expected | None = None
    ) -> Function:
        kind = type(self.heads).__name__
        return function_of(runtime, function, self._dtype, f"{called} of {kind}", expected=expected)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        whole = self._whole_chain(contexts)
        if whole is None:
            return super()._grow(contexts)
        hidden = self._last_outputs(contexts)[:, None]
        roots = on_device([[context.token_ids[-1]] for context in contexts], hidden.device)
        uniforms = on_device(whole.uniforms, hidden.device, torch.float64)
        draft = partial(self._draft, whole.chain, hidden, roots, uniforms)
        _, probs, token_ids = self._tried(draft)
        return chains(DraftedChain(token_ids, probs), contexts)

    def _draft(self, chain: DraftChain, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._chain_by(chain)(*inputs)

    def _source(self, contexts: Sequence[Context]) -> LogitSource:
        """Compute one head's distributions after each of the F nodes of the level above it."""
        hidden = self._last_outputs(contexts)[:, None]  # [B, 1, H]
        roots = on_device([[context.token_ids[-1]] for context in contexts], hidden.device)
        if self.heads.reads_tokens:
            return self._along(hidden, roots)
        return self._at_once(self._said(hidden), roots)

    def _said(self, hidden: Tensor) -> Iterator[Tensor]:  # of [B, 1, V]
        """Ask all heads at once, since they read no tokens."""
        for found in self._tried(partial(self._level, 0, hidden)):  # logits, or a state
            yield found if self.heads.vocabulary_heads else self.verifier.unembed(found)

    def _along(self, hidden: Tensor, roots: Tensor) -> LogitSource:
        """Ask head by head: each reads the tokens that were chosen by those before it."""
        state = hidden.view(hidden.shape)  # a tensor of its own: programs tell inputs apart
        path = roots[..., None]  # [B, F, i + 1]: from the root down
        for head in range(len(self._levels)):
            embeddings = self.verifier.embed(path).to(hidden.dtype)
            inputs = hidden, embeddings, state
            state, *own = self._tried(partial(self._level, head, *inputs))  # [B, F, H], and logits
            logits = own[0] if own else self.verifier.unembed(state)
            logits = self.heads.corrected(logits, path[..., -1])
            frontier = yield fitted(logits, self._vocab_size)
            path = below(path, frontier.parents)
            path = torch.cat([path, frontier.token_ids[..., None]], dim=-1)
            state = below(state, frontier.parents)
            hidden = hidden[:, :1].expand(-1, path.shape[1], -1).contiguous()

    def _level(self, head: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._levels[head](*inputs)
