"""A small language model drafts, with a KV cache of its own that follows the committed text."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.core.errors import require_number
from specdec.core.protocols import CausalLM, TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Layer, Proposal, Verdict
from specdec.lm.batch import pad


class DraftModel:
    """Draw chains from a draft model (Leviathan et al. 2023; Chen et al. 2023).

    Drafts are sampled like the verifier's text (same top-k, top-p, min-p) at `temperature`, by
    default the verifier's. The cache holds cells of committed tokens, and while a chain grows those
    of its tokens; whatever the text has and the cache has not is read at the start of a step.
    """

    layers: Sequence[Layer] = ()

    def __init__(self, model: CausalLM, tree: TreePolicy, temperature: float | None = None):
        if temperature is not None:
            require_number("proposer.temperature", temperature, 0.0)
        self.model = model
        self._tree = tree
        self._temperature = temperature
        self._vocab_size = model.vocab_size

    @property
    def draw(self) -> Draw:
        """Chosen by the tree."""
        return self._tree.draw

    @property
    def max_depth(self) -> int:
        """Chosen by the tree."""
        return self._tree.max_depth

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Empty the cache; q will be `vocab_size` wide, like p."""
        self.model.open(num_rows, capacity + self.max_depth)
        self._vocab_size = vocab_size

    def reset(self, contexts: Sequence[Context]) -> None:
        """Read the prompts, all but their last token."""
        for context in contexts:
            self.model.keep(context.row, 0)
        readable = [context for context in contexts if self._fits(context)]
        self.model.prefill(
            _rows(readable), [self._known(context.token_ids[:-1]) for context in readable]
        )

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Grow one chain per request, all of them level by level in one batch."""
        drafting = [c for c in contexts if c.max_depth > 0 and self._fits(c)]
        proposals = dict(zip(_rows(drafting), self._chains(drafting), strict=True))
        return [
            proposals.get(c.row) or Proposal(CandidateTree.chain(c.token_ids[-1], ()))
            for c in contexts
        ]

    def _chains(self, contexts: Sequence[Context]) -> list[Proposal]:
        if not contexts:
            return []
        depth = min(self.max_depth, max(context.max_depth for context in contexts))
        rows = _rows(contexts)
        streams = [context.draft_stream for context in contexts]
        sampling = self._sampling(contexts[0].sampling)

        logits = self._catch_up(contexts)  # [B, 1, V]
        laws: list[Tensor] = []
        levels: list[Tensor] = []
        for level in range(depth):
            laws.append(sampling.warp(self._fitted(logits)))  # [B, 1, V]
            levels.append(self._tree.expand(laws[-1], streams).squeeze(-1))  # [B, 1]
            if level < depth - 1:
                logits = self.model.forward(rows, levels[-1]).logits

        draft_ids = torch.cat(levels, dim=1).tolist()  # the only wait for the device
        draft_probs = torch.cat(laws, dim=1)  # [B, depth, V]
        return [
            self._proposal(c, ids, probs)
            for c, ids, probs in zip(contexts, draft_ids, draft_probs, strict=True)
        ]

    def _proposal(self, context: Context, draft_ids: list[int], probs: Tensor) -> Proposal:
        tree = CandidateTree.chain(context.token_ids[-1], draft_ids)
        # What it would have cost alone: neighbours in the batch may have asked for more levels.
        num_calls = min(len(draft_ids), context.max_depth)
        return Proposal(tree, self.draw, probs, num_calls)

    def _catch_up(self, contexts: Sequence[Context]) -> Tensor:  # [B, 1, V]
        """Read the committed tokens that are not cached; return the logits after the last one."""
        missing = [
            self._known(context.token_ids[self.model.length(context.row) :]) for context in contexts
        ]
        logits = self.model.forward(_rows(contexts), pad(missing, self.model.device)).logits
        for context in contexts:
            self.model.keep(context.row, len(context.token_ids))  # without the padding
        if len(set(map(len, missing))) == 1:
            return logits[:, -1:]
        last = torch.tensor([[len(ids) - 1] for ids in missing], device=logits.device)
        return logits[torch.arange(len(contexts), device=logits.device)[:, None], last]

    def _known(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Read padding of the verifier's vocabulary, which may be drawn, as some other token."""
        if self._vocab_size <= self.model.vocab_size:
            return token_ids
        return [token if token < self.model.vocab_size else 0 for token in token_ids]

    def _fits(self, context: Context) -> bool:
        """Whether the text and a whole chain fit the draft model's own context."""
        return len(context.token_ids) + self.max_depth <= self.model.max_length

    def _sampling(self, sampling: Sampling) -> Sampling:
        if self._temperature is None:
            return sampling
        return replace(sampling, temperature=self._temperature)

    def _fitted(self, logits: Tensor) -> Tensor:  # [B, V of the draft] -> [B, V of the verifier]
        """Cut or widen to the verifier's logits: padded vocabularies differ within a family."""
        missing = self._vocab_size - logits.shape[-1]
        if missing == 0:
            return logits
        return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Rewind to the committed text; its last token is read at the start of the next step."""
        for context in contexts:
            committed = len(context.token_ids) - 1
            self.model.keep(context.row, min(committed, self.model.length(context.row)))


def _rows(contexts: Sequence[Context]) -> list[int]:
    return [context.row for context in contexts]
