"""A small language model drafts, with a KV cache of its own that follows the committed text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.protocols import CausalLM, ChainDrafter, TreePolicy
from specdec.core.room import Room
from specdec.core.unlike_vocabularies import fitted, known, readable
from specdec.core.values import CandidateSource, Context, Layer, Proposal, Verdict
from specdec.lm.batch import pad
from specdec.lm.begin import begin
from specdec.lm.vocabularies import require_model
from specdec.proposer.frontier_cells import FrontierCells
from specdec.proposer.growth import LogitSource, grow, propose_where
from specdec.proposer.tree_proposer import TreeProposer, chains

LEAST_WIDTH = 2  # cells that a chain starts from: a program serves one missing token and two alike


class DraftModel(TreeProposer):
    """Draft with a small model (Leviathan et al. 2023; Chen et al. 2023), in chains or trees.

    Drafts are sampled like the verifier's text (same top-k, top-p, min-p) at `temperature`, by
    default the verifier's. The cache holds cells of committed tokens, and while a tree grows those
    of its tokens; whatever the text has and the cache has not is read at the start of a step.

    Raises:
        UserError: the tree names a rank beyond the vocabulary.
    """

    source = CandidateSource.MODEL
    layers: Sequence[Layer] = ()

    def __init__(self, model: CausalLM, tree: TreePolicy, temperature: float | None = None):
        require_model(model, "draft model")
        super().__init__(tree, temperature, model.vocab_size)
        self.model = model
        self._room = Room.of(model)
        self._drafter = model if isinstance(model, ChainDrafter) else None

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Empty the cache; q will be `vocab_size` wide, like p."""
        self.model.open(num_rows, min(capacity, self.model.max_length) + self.max_depth)
        self._vocab_size = vocab_size

    def reset(self, contexts: Sequence[Context]) -> None:
        """Read the prompts, all but their last token."""
        for context in contexts:
            self.model.keep(context.row, 0)
        able = [context for context in contexts if self._fits(context)]
        begin(self.model, _rows(able), [self._readable(context.token_ids) for context in able])

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Grow one tree per request, all of them in one batch."""
        return propose_where(self._fits, contexts, self._grow)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        return self._at_once(contexts) or self._by_levels(contexts)

    def _at_once(self, contexts: Sequence[Context]) -> list[Proposal] | None:
        """Let the model draft a whole chain; None: it cannot, or the tree is none."""
        whole = None if self._drafter is None else self._whole_chain(contexts)
        if self._drafter is None or whole is None:
            return None
        missing = self._missing(contexts)
        found = self._drafter.draft_chain(
            _rows(contexts),
            pad(missing, self.model.device, LEAST_WIDTH),
            [len(token_ids) for token_ids in missing],
            *whole,
        )
        return found and chains(found, contexts)

    def _by_levels(self, contexts: Sequence[Context]) -> list[Proposal]:
        cells = FrontierCells([len(context.token_ids) for context in contexts], self.model.device)
        proposals = grow(self.tree, contexts, self._read(contexts, cells), self.temperature)
        if not cells.is_chain:
            # Its cells are in no order that a path could be kept from; accepted tokens are read
            # again with those that follow, in the forward that starts the next step anyway.
            for context in contexts:
                self.model.keep(context.row, len(context.token_ids))
        return proposals

    def _read(self, contexts: Sequence[Context], cells: FrontierCells) -> LogitSource:
        """Read the text, then one frontier after the other."""
        rows = _rows(contexts)
        frontier = yield fitted(self._catch_up(contexts), self._vocab_size)
        while True:
            where = cells.add(frontier)
            logits = self.model.forward(rows, self._known(frontier.token_ids), *where).logits
            frontier = yield fitted(logits, self._vocab_size)

    def _catch_up(self, contexts: Sequence[Context]) -> Tensor:  # [B, 1, V]
        """Read the committed tokens that are not cached; return the logits after the last one."""
        missing = self._missing(contexts)
        logits = self.model.forward(_rows(contexts), pad(missing, self.model.device)).logits
        for context in contexts:
            self.model.keep(context.row, len(context.token_ids))  # without the padding
        if len(set(map(len, missing))) == 1:
            return logits[:, -1:]
        last = on_device([[len(ids) - 1] for ids in missing], logits.device)
        return logits[torch.arange(len(contexts), device=logits.device)[:, None], last]

    def _missing(self, contexts: Sequence[Context]) -> list[Sequence[int]]:
        """Return the committed tokens that are not cached."""
        return [
            self._readable(context.token_ids[self.model.length(context.row) :])
            for context in contexts
        ]

    def _readable(self, token_ids: Sequence[int]) -> Sequence[int]:
        if self._vocab_size <= self.model.vocab_size:  # without looking at each token
            return token_ids
        return readable(token_ids, self.model.vocab_size)

    def _known(self, token_ids: Tensor) -> Tensor:
        if self._vocab_size <= self.model.vocab_size:
            return token_ids
        return known(token_ids, self.model.vocab_size)

    def _fits(self, context: Context) -> bool:
        """Whether the text and a whole tree fit the draft model's own context."""
        most = self._room.row(context.num_prompt_tokens)
        return len(context.token_ids) + self.max_depth <= most

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Rewind to the committed text."""
        self.rewind(contexts)

    def rewind(self, contexts: Sequence[Context]) -> None:
        """Drop the cells behind each text; its last token is read at the start of the next step."""
        for context in contexts:
            committed = len(context.token_ids) - 1
            self.model.keep(context.row, min(committed, self.model.length(context.row)))


def _rows(contexts: Sequence[Context]) -> list[int]:
    return [context.row for context in contexts]
