"""A small language model drafts, with a KV cache of its own that follows the committed text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.errors import Unfit, UserError
from specdec.core.on_device import on_device
from specdec.core.protocols import CausalLM, ChainDrafter, TreePolicy
from specdec.core.room import Room
from specdec.core.values import CandidateSource, Context, Draw, Layer, Proposal, Verdict
from specdec.lm.batch import pad
from specdec.lm.begin import begin
from specdec.lm.hf import HFCausalLM
from specdec.lm.placement import is_whole
from specdec.lm.vocabularies import require_model
from specdec.proposer.draft_tokens import tokens_of
from specdec.proposer.frontier_cells import FrontierCells
from specdec.proposer.growth import LogitSource, grow, propose_where
from specdec.proposer.tree_fit import require_ranks, require_single_chain
from specdec.proposer.tree_proposer import TreeProposer, chains

OTHER_TOKENS = "a draft of another tokenizer learns nothing from the verifier's tokens"
LEAST_WIDTH = 2  # cells that a chain starts from: a program serves one missing token and two alike


class DraftModel(TreeProposer):
    """Draft with a small model (Leviathan et al. 2023; Chen et al. 2023), in chains or trees.

    Drafts are sampled like the verifier's text (same top-k, top-p, min-p) at `temperature`, by
    default the verifier's. The cache holds cells of committed tokens, and while a tree grows those
    of its tokens; whatever the text has and the cache has not is read at the start of a step.

    A model of another tokenizer drafts the tokens that it shares with the verifier, in any tree, or
    text in chains of its own tokens, the likeliest unless a temperature is given: as it was loaded
    (`vocabulary` of `specdec.lm.load.load`).

    Raises:
        UserError: the tree names a rank beyond the vocabulary, or text is drafted in no chain.
    """

    source = CandidateSource.MODEL
    layers: Sequence[Layer] = ()

    def __init__(self, model: CausalLM, tree: TreePolicy, temperature: float | None = None):
        require_model(model, "draft model")
        super().__init__(tree, temperature, model.vocab_size)
        self.model = model
        self._tokens = tokens_of(model, tree.max_depth)
        require_ranks(tree, self._tokens.num_tokens)
        if self._tokens.draw is not None:
            require_single_chain(tree)
            # Of point masses the likeliest are accepted most.
            self.temperature = 0.0 if temperature is None else temperature
        self._room = Room.of(model)
        drafter = model if isinstance(model, ChainDrafter) else None
        self._drafter = drafter if self._tokens.by_program else None

    @property
    def draw(self) -> Draw:
        """Chosen by the tree; text is a point mass."""
        return self._tokens.draw or self.tree.draw

    def own_weights(self) -> PreTrainedModel:
        """Draft with a copy of the weights from now on, and return the model that holds it.

        Raises:
            UserError: it is no model of transformers, or its weights cannot be copied and trained.
        """
        lm = self.model
        if not isinstance(lm, HFCausalLM):
            raise UserError(f"{type(lm).__name__}: no model of transformers, whose weights change")
        if lm.has_programs:
            raise Unfit(
                f"the draft's runtime={lm.runtime}: its programs keep weights; expected eager"
            )
        if lm.translation is not None:
            raise Unfit(OTHER_TOKENS)
        if lm.quantization is not None or not is_whole(lm.model):
            raise Unfit("the draft's weights are rounded or not on one device: they cannot change")
        if lm.prompt_mask is not None:
            raise Unfit(f"a draft that reads prompts by {lm.prompt_mask} cannot learn along texts")
        self.model = own = lm.with_own_weights()
        self._drafter = own
        return own.model

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Empty the cache; q will be `vocab_size` wide, like p."""
        self.model.open(num_rows, min(capacity, self.model.max_length) + self.max_depth)
        self._vocab_size = self._tokens.open(vocab_size)

    def reset(self, contexts: Sequence[Context]) -> None:
        """Read the prompts, all but their last token."""
        for context in contexts:
            self.model.keep(context.row, 0)
            self._tokens.begin(context)
        able = [context for context in contexts if self._fits(context)]
        begin(self.model, _rows(able), [self._tokens.readable(self._text(each)) for each in able])

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Grow one tree per request, all of them in one batch."""
        return propose_where(self._fits, contexts, self._grow)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        self._drop(contexts)  # other tokens may end the text now, if more of it was committed since
        asking = self._tokens.asking(contexts)
        return self._tokens.said(contexts, self._at_once(asking) or self._by_levels(asking))

    def _text(self, context: Context) -> Sequence[int]:
        return self._tokens.text(context)

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
        lengths = [len(self._text(context)) for context in contexts]
        cells = FrontierCells(lengths, self.model.device)
        proposals = grow(self.tree, contexts, self._read(contexts, cells), self.temperature)
        if not cells.is_chain:
            # Its cells are in no order that a path could be kept from; accepted tokens are read
            # again with those that follow, in the forward that starts the next step anyway.
            for context, length in zip(contexts, lengths, strict=True):
                self.model.keep(context.row, length)
        return proposals

    def _read(self, contexts: Sequence[Context], cells: FrontierCells) -> LogitSource:
        """Read the text, then one frontier after the other."""
        rows = _rows(contexts)
        frontier = yield self._tokens.fitted(self._catch_up(contexts))
        while True:
            where = cells.add(frontier)
            known = self._tokens.known(frontier.token_ids)
            frontier = yield self._tokens.fitted(self.model.forward(rows, known, *where).logits)

    def _catch_up(self, contexts: Sequence[Context]) -> Tensor:  # [B, 1, V]
        """Read the committed tokens that are not cached; return the logits after the last one."""
        missing = self._missing(contexts)
        logits = self.model.forward(_rows(contexts), pad(missing, self.model.device)).logits
        for context in contexts:
            self.model.keep(context.row, len(self._text(context)))  # without the padding
        if len(set(map(len, missing))) == 1:
            return logits[:, -1:]
        last = on_device([[len(ids) - 1] for ids in missing], logits.device)
        return logits[torch.arange(len(contexts), device=logits.device)[:, None], last]

    def _missing(self, contexts: Sequence[Context]) -> list[Sequence[int]]:
        """Return the committed tokens that are not cached."""
        return [
            self._tokens.readable(self._text(context)[self.model.length(context.row) :])
            for context in contexts
        ]

    def _fits(self, context: Context) -> bool:
        """Whether the text and a whole tree fit the draft model's own context."""
        length = len(self._text(context))
        most = self._room.row(min(context.num_prompt_tokens, length))
        return 0 < length <= most - self.max_depth

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Rewind to the committed text."""
        self._drop(contexts)

    def rewind(self, contexts: Sequence[Context]) -> None:
        """Go back to earlier texts, whose last tokens are read at the start of the next step."""
        for context in contexts:
            self._tokens.rewind(context)
        self._drop(contexts)

    def _drop(self, contexts: Sequence[Context]) -> None:
        """Drop the cells that are not of these texts."""
        for context in contexts:
            agreed = self._tokens.agreed(context)
            self.model.keep(context.row, min(agreed, self.model.length(context.row)))


def _rows(contexts: Sequence[Context]) -> list[int]:
    return [context.row for context in contexts]
