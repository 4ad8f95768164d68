"""In which tokens a draft model reads the text, and drafts: its own or the verifier's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor

from specdec.core.protocols import CausalLM
from specdec.core.tree import CandidateTree
from specdec.core.unlike_vocabularies import fitted, known, readable
from specdec.core.values import Context, Draw, Proposal
from specdec.lm.respelled import Respelled
from specdec.lm.translation import STRINGS, Translation, translation_of


class DraftTokens(Protocol):
    """What stands between the verifier's tokens and a draft model's, for all rows."""

    @property
    def draw(self) -> Draw | None:
        """How candidates come about; None: as the tree says."""
        ...

    @property
    def by_program(self) -> bool:
        """Whether a model may draft whole chains by itself: candidates are as it has them."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many tokens there are to draft."""
        ...

    def open(self, vocab_size: int) -> int:
        """Start afresh with a verifier's vocabulary; return how wide q is while trees grow."""
        ...

    def begin(self, context: Context) -> None:
        """Begin a request in its row, whose text the model reads but for the last token."""
        ...

    def text(self, context: Context) -> Sequence[int]:
        """Return the committed text in the draft's tokens."""
        ...

    def readable(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Turn tokens of that text into such as the model has."""
        ...

    def known(self, token_ids: Tensor) -> Tensor:  # [...] -> [...]
        """Turn candidates into what the model reads."""
        ...

    def fitted(self, logits: Tensor) -> Tensor:  # [..., V of the draft] -> [..., V of q]
        """Turn the model's logits into those of candidates."""
        ...

    def agreed(self, context: Context) -> int:
        """Return how many cells of a row go on being right, as the text is now."""
        ...

    def rewind(self, context: Context) -> None:
        """Follow a text that may have been taken back; see `core.protocols.Rewinding`."""
        ...

    def asking(self, contexts: Sequence[Context]) -> Sequence[Context]:
        """Return what trees grow for."""
        ...

    def said(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> list[Proposal]:
        """Turn what was grown into candidates for the verifier."""
        ...


class SameTokens:
    """The draft's tokens are the verifier's, but that one of them may have more."""

    draw: Draw | None = None
    by_program = True

    def __init__(self, model: CausalLM):
        self._model = model
        self._vocab_size = model.vocab_size  # of q

    @property
    def num_tokens(self) -> int:
        """All of them."""
        return self._model.vocab_size

    def open(self, vocab_size: int) -> int:
        """Let q be as wide as p."""
        self._vocab_size = vocab_size
        return vocab_size

    def begin(self, context: Context) -> None:
        """Nothing is kept of a request."""

    def text(self, context: Context) -> Sequence[int]:
        """The committed tokens themselves."""
        return context.token_ids

    def readable(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Replace what only the verifier has."""
        if self._vocab_size <= self._model.vocab_size:  # without looking at each token
            return token_ids
        return readable(token_ids, self._model.vocab_size)

    def known(self, token_ids: Tensor) -> Tensor:
        """Do the same on the device."""
        if self._vocab_size <= self._model.vocab_size:
            return token_ids
        return known(token_ids, self._model.vocab_size)

    def fitted(self, logits: Tensor) -> Tensor:
        """Cut or widen them."""
        return fitted(logits, self._vocab_size)

    def agreed(self, context: Context) -> int:
        """All but the last token, which is read at the start of the next step."""
        return len(context.token_ids) - 1

    def rewind(self, context: Context) -> None:
        """Nothing is kept of a text."""

    def asking(self, contexts: Sequence[Context]) -> Sequence[Context]:
        """The same."""
        return contexts

    def said(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> list[Proposal]:
        """The same."""
        return list(proposals)


@dataclass
class _TranslatedRow:
    """A request's text in the draft's tokens, and those that stand in the model's cells."""

    text: Respelled
    cells: list[int] = field(default_factory=list[int])


class _OtherTokens:
    """The text is read in the draft's own tokens; the rows of all requests in flight."""

    def __init__(self, model: CausalLM, translation: Translation):
        self._model = model
        self._translation = translation
        self._rows: dict[int, _TranslatedRow] = {}

    def begin(self, context: Context) -> None:
        """Encode the prompt."""
        row = _TranslatedRow(self._translation.reading())
        self._rows[context.row] = row
        row.cells = [*row.text.follow(context.token_ids)[:-1]]

    def text(self, context: Context) -> Sequence[int]:
        """Encode what is new, and a little before it."""
        return self._rows[context.row].text.follow(context.token_ids)

    def readable(self, token_ids: Sequence[int]) -> Sequence[int]:
        """They are the draft's."""
        return token_ids

    def agreed(self, context: Context) -> int:
        """The longest beginning that the text still has, but for its last token."""
        token_ids, row = self.text(context), self._rows[context.row]
        most = min(len(token_ids) - 1, len(row.cells))
        same = next((n for n in range(most) if token_ids[n] != row.cells[n]), max(most, 0))
        del row.cells[same:]
        return same

    def rewind(self, context: Context) -> None:
        """Encode the text anew, if tokens that were read may be others now."""
        row = self._rows[context.row]
        if row.text.num_read >= len(context.token_ids):
            row.text = self._translation.reading()

    def _note(self, context: Context, drafted: Sequence[int]) -> None:
        """Note that the model has read the text, and at most so many tokens behind it."""
        row = self._rows[context.row]
        row.cells = [*row.text.token_ids, *drafted]


class CommonTokens(_OtherTokens):
    """Candidates are the tokens that both have: token-level intersection (TLI).

    What the draft says of other tokens is left out before q is made of its logits, so that q is
    renormalised over those that both have (Timor et al. 2025, arXiv 2502.05202, section 4), after
    the verifier's processors and filters as any other q. Tokens are drawn from exactly this q, and
    any rule is as lossless as it was: whatever the draft made of the text decides q and nothing
    else.
    """

    draw: Draw | None = None
    by_program = False

    def __init__(self, model: CausalLM, translation: Translation):
        super().__init__(model, translation)
        self._open(max(translation.pairs) + 1)

    @property
    def num_tokens(self) -> int:
        """Those that both models have."""
        return len(self._theirs)

    def open(self, vocab_size: int) -> int:
        """Let q be as wide as p."""
        self._rows = {}
        self._open(vocab_size)
        return vocab_size

    def _open(self, vocab_size: int) -> None:
        """Note the tokens that both models, and not their tokenizers alone, have."""
        there = {
            theirs: ours
            for theirs, ours in sorted(self._translation.pairs.items())
            if theirs < vocab_size and ours < self._model.vocab_size
        }
        self._vocab_size, self._there, device = vocab_size, there, self._model.device
        self._theirs = torch.tensor(list(there), dtype=torch.int64, device=device)
        self._ours = torch.tensor(list(there.values()), dtype=torch.int64, device=device)
        # Candidates that only hold a place in a batch may be any token.
        self._table = torch.zeros(vocab_size, dtype=torch.int64, device=device)
        self._table[self._theirs] = self._ours

    def known(self, token_ids: Tensor) -> Tensor:
        """Look each candidate up."""
        return self._table[token_ids]

    def fitted(self, logits: Tensor) -> Tensor:
        """Move each token's logit to where the verifier has it; the others are impossible."""
        shape = (*logits.shape[:-1], self._vocab_size)
        found = logits.new_full(shape, float("-inf"))
        found[..., self._theirs] = logits[..., self._ours]
        return found

    def asking(self, contexts: Sequence[Context]) -> Sequence[Context]:
        """Trees grow in the verifier's tokens."""
        return contexts

    def said(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> list[Proposal]:
        """Note what the cells of chains hold; those of trees are not kept."""
        for context, proposal in zip(contexts, proposals, strict=True):
            drafted = proposal.tree.token_ids[1:] if proposal.tree.is_chain else ()
            self._note(context, [self._there.get(token, -1) for token in drafted])
        return list(proposals)


class OwnText(_OtherTokens):
    """The draft writes text, and candidates are the verifier's tokens of it.

    String-level exact match (SLEM; Timor et al. 2025, arXiv 2502.05202, section 3). What is drafted
    is encoded in the verifier's tokens together with the end of the text before it, as far as no
    token reaches into that. Candidates are point masses: a function of the text and of the draft's
    own noise, of which the verifier's knows nothing, so that any rule for point masses is lossless
    whatever they are. Nothing is known of how likely a *verifier's* token was to the draft.
    """

    draw: Draw | None = Draw.DETERMINISTIC
    by_program = True

    def __init__(self, model: CausalLM, translation: Translation, max_depth: int):
        super().__init__(model, translation)
        self._max_depth = max_depth
        self._specials = {ours: theirs for theirs, ours in translation.twins.items()}
        self._vocab_size = 0  # the verifier's

    @property
    def num_tokens(self) -> int:
        """All of the draft's."""
        return self._model.vocab_size

    def open(self, vocab_size: int) -> int:
        """Draft in the draft's own tokens."""
        self._rows = {}
        self._vocab_size = vocab_size
        return self._model.vocab_size

    def known(self, token_ids: Tensor) -> Tensor:
        """They are the draft's."""
        return token_ids

    def fitted(self, logits: Tensor) -> Tensor:
        """They are the draft's."""
        return logits

    def asking(self, contexts: Sequence[Context]) -> Sequence[Context]:
        """Leave out processors, which know the verifier's tokens alone."""
        return [replace(context, processors=()) for context in contexts]

    def said(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> list[Proposal]:
        """Encode what was written."""
        found: list[Proposal] = []
        for context, proposal in zip(contexts, proposals, strict=True):
            drafted = proposal.tree.token_ids[1:]
            self._note(context, drafted)
            most = min(self._max_depth, context.max_depth)
            tree = CandidateTree.chain(context.token_ids[-1], self._tokens(context, drafted)[:most])
            found.append(Proposal(tree, num_draft_calls=proposal.num_draft_calls))
        return found

    def _tokens(self, context: Context, drafted: Sequence[int]) -> list[int]:
        """Return the verifier's tokens of what was drafted, up to a special one."""
        specials = self._translation.draft.specials
        end = next((n for n, token in enumerate(drafted) if token in specials), len(drafted))
        text = self._rows[context.row].text
        said = self._translation.draft.said(drafted[:end])
        found = self._translation.behind(text, said)
        ends = found is not None and end < len(drafted) and drafted[end] in self._specials
        token_ids = [*(found or []), *([self._specials[drafted[end]]] if ends else [])]
        return list(takewhile(lambda token: token < self._vocab_size, token_ids))


def tokens_of(model: CausalLM, max_depth: int) -> DraftTokens:
    """Return in which tokens a model drafts chains or trees of a depth, as it was loaded for."""
    translation = translation_of(model)
    if translation is None:
        return SameTokens(model)
    if translation.kind == STRINGS:
        return OwnText(model, translation, max_depth)
    return CommonTokens(model, translation)
