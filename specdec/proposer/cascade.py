"""A cascade: what a middle model drafts for the verifier is itself drafted by a cheaper proposer.

Speculative decoding within speculative decoding: staged speculative decoding (Spector and Re 2023,
arXiv 2308.04623), cascade speculative drafting (Chen et al. 2023, arXiv 2312.11462) and TriForce
(Sun et al. 2024, arXiv 2404.11912) do so.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.core.errors import Unfit, require_number
from specdec.core.members import require_members
from specdec.core.on_device import on_device
from specdec.core.processing import over_tree
from specdec.core.protocols import (
    CausalLM,
    DrawnChain,
    Proposer,
    Rewinding,
    TreeFinisher,
    TreePolicy,
    VerificationRule,
)
from specdec.core.room import Room
from specdec.core.sampling import Sampling
from specdec.core.shown import Shown
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.unlike_vocabularies import fitted, readable
from specdec.core.values import (
    CandidateSource,
    Context,
    Draw,
    Draws,
    Layer,
    Proposal,
    Verdict,
    each_draw,
)
from specdec.core.verified import verified
from specdec.lm.batch import TreeBatch
from specdec.lm.begin import begin
from specdec.lm.branching import require_reads
from specdec.lm.translation import translation_of
from specdec.lm.vocabularies import require_model, require_one_family
from specdec.proof.lossless import prove_lossless
from specdec.proposer.growth import propose_where


class Cascade:
    """Draft a chain with a middle model that decodes speculatively, with a proposer of its own.

    In each of its steps the inner proposer drafts behind what the chain has so far, the middle
    model reads that in one forward, and the inner rule decides. Since that rule is lossless for the
    middle model, the chain is one draw from the middle model's own distribution: at each place q is
    what the middle model says after the tokens before it, whoever drafted them. So the verifier
    gets what a chain of the middle model alone is, accepted as often, for fewer forwards of the
    middle model.

    A chain always has as many tokens as the tree's depth and the budget say, whatever was refused
    within it; what comes in place of a refused candidate is part of it. Accepted candidates alone
    would not be draws from the middle model.

    `num_draft_calls` of a proposal are forwards of the middle model; those of the inner proposer
    are not counted.

    Args:
        model: the middle model, which follows the committed text in a cache of its own.
        inner: drafts for the middle model; none that reads hidden states.
        rule: decides for the middle model, and is lossless for the candidates of `inner`.
        tree: a chain; its depth is what the verifier gets.
        temperature: of the middle model's chain; None: the verifier's.

    Raises:
        UserError: a part is none, the rule is not lossless for such candidates, or the parts do not
            go together (Unfit).
    """

    source = CandidateSource.MODEL
    draw = Draw.SINGLE
    layers: Sequence[Layer] = ()

    def __init__(
        self,
        model: CausalLM,
        inner: Proposer,
        rule: VerificationRule,
        tree: TreePolicy,
        temperature: float | None = None,
    ):
        require_model(model, "middle model")
        require_members(inner, "proposer")
        require_members(rule, "verification rule")
        require_members(tree, "tree")
        if temperature is not None:
            require_number("temperature", temperature, 0.0)
        require_drawn_chain(tree)
        require_inner(inner, rule)
        if translation_of(model) is not None:
            raise Unfit("a cascade's middle model reads the verifier's tokens alone")
        require_one_family(model, inner)
        require_reads(model, inner, "inner: ")
        self.model, self.inner, self.rule = model, inner, rule
        self.tree = tree
        self.temperature = temperature
        self.max_depth = tree.max_depth
        self._room = Room.of(model)
        self._vocab_size = model.vocab_size  # until `open` says how wide q is to be

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Empty the caches; q will be `vocab_size` wide, like p."""
        deepest = self.max_depth + self.inner.max_depth
        self.model.open(num_rows, min(capacity, self.model.max_length) + deepest)
        self.inner.open(num_rows, capacity + self.max_depth, vocab_size)
        self._vocab_size = vocab_size

    def reset(self, contexts: Sequence[Context]) -> None:
        """Read the prompts, all but their last token."""
        for context in contexts:
            self.model.keep(context.row, 0)
        able = [context for context in contexts if self._fits(context)]
        prompts = [readable(context.token_ids, self.model.vocab_size) for context in able]
        begin(self.model, [context.row for context in able], prompts)
        self.inner.reset(contexts)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Draft one chain per request, as deep as it can use."""
        return propose_where(self._fits, contexts, self._draft)

    def _fits(self, context: Context) -> bool:
        """Whether the text and a whole chain fit the middle model's own context."""
        most = self._room.row(context.num_prompt_tokens)
        return len(context.token_ids) + self.max_depth <= most

    def _draft(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Decode speculatively with the middle model, until every chain is complete."""
        drafts = [_Draft(each, self.max_depth, self.temperature) for each in contexts]
        while growing := [draft for draft in drafts if draft.num_missing]:
            self._step(growing)
        return [draft.proposal for draft in drafts]

    def _step(self, drafts: Sequence["_Draft"]) -> None:
        """Let each chain grow by what one forward of the middle model yields."""
        contexts = [draft.context() for draft in drafts]
        proposals = [
            proposal.pruned(context.max_depth, frozenset())
            for proposal, context in zip(self.inner.propose(contexts), contexts, strict=True)
        ]
        probs = self._middle_probs(contexts, proposals)  # [B, M, V]
        streams = [context.verify_stream for context in contexts]
        certain = contexts[0].sampling.temperature == 0
        verdicts = verified(self.rule, Shown(proposals, probs, streams, certain))
        grown = zip(drafts, proposals, verdicts, probs, strict=True)
        for draft, proposal, verdict, rows in grown:
            self.model.keep(draft.row, len(draft.text) - 1, [ROOT, *verdict.path])
            draft.take(proposal, verdict, rows)
        self.inner.update(contexts, verdicts)

    def _middle_probs(
        self, contexts: Sequence[Context], proposals: Sequence[Proposal]
    ) -> Tensor:  # [B, M, V]
        """Return the middle model's distribution after each node of the inner trees.

        What the cache lacks of a text is read in the same forward.
        """
        rows = [context.row for context in contexts]
        starts = [self.model.length(row) for row in rows]
        unread = [
            len(context.token_ids) - 1 - start
            for context, start in zip(contexts, starts, strict=True)
        ]
        trees = [
            self._readable(context.token_ids[start:], proposal.tree)
            for context, start, proposal in zip(contexts, starts, proposals, strict=True)
        ]
        batch = TreeBatch.of(trees, starts, self.model.device)
        logits = _behind(self.model.forward(rows, *batch).logits, unread)
        logits = fitted(logits, self._vocab_size)
        if any(context.processors for context in contexts):
            logits = torch.stack(
                [
                    over_tree(context.processors, context.token_ids, proposal.tree, each)
                    for context, proposal, each in zip(contexts, proposals, logits, strict=True)
                ]
            )
        return contexts[0].sampling.warp(logits)

    def _readable(self, missing: Sequence[int], tree: CandidateTree) -> CandidateTree:
        """Hang a tree from the last of the tokens that are missing, in tokens of the model."""
        above = len(missing) - 1
        token_ids = readable([*missing[:-1], *tree.token_ids], self.model.vocab_size)
        below = (above + parent for parent in tree.parents[1:])
        return CandidateTree(tuple(token_ids), (*range(-1, above), *below))

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Rewind to the committed text: of the chain only what the verifier accepted stays."""
        self.rewind(contexts)

    def rewind(self, contexts: Sequence[Context]) -> None:
        """Drop what was read behind each text; its last token is read in the next step."""
        for context in contexts:
            committed = len(context.token_ids) - 1
            self.model.keep(context.row, min(committed, self.model.length(context.row)))
        if isinstance(self.inner, Rewinding):
            self.inner.rewind(contexts)
        else:  # it has followed tokens that are no part of the text
            self.inner.reset(contexts)


class _Draft:
    """The chain of one request while it grows."""

    def __init__(self, context: Context, depth: int, temperature: float | None):
        self.text = list(context.token_ids)  # and what is drafted
        self.row = context.row
        self._context = context
        self._sampling: Sampling = context.sampling.at(temperature)
        self._num_committed = len(self.text)
        self._end = self._num_committed + min(depth, context.max_depth)
        self._num_steps = 0
        self._probs: list[Tensor] = []  # each [n, V]: what n more tokens were drawn from

    @property
    def num_missing(self) -> int:
        """How many tokens the chain still lacks."""
        return self._end - len(self.text)

    def context(self) -> Context:
        """Return what the inner proposer and the inner rule may know, with noise of their own."""
        streams = (
            self._context.draft_stream.under("inner", self._num_steps, purpose)
            for purpose in ("draft", "verify")
        )
        draft_stream, verify_stream = streams
        return replace(
            self._context,
            token_ids=self.text,
            sampling=self._sampling,
            budget=self.num_missing,
            draft_stream=draft_stream,
            verify_stream=verify_stream,
            features={},
            room=None,
        )

    def take(self, proposal: Proposal, verdict: Verdict, probs: Tensor) -> None:  # [M, V]
        """Append what a step of the middle model emits, and what it was drawn from."""
        tokens = proposal.tree.token_ids
        # Where the model's numbers are NaN there is no such token; the verifier decides.
        following = min(verdict.next_token, probs.shape[-1] - 1)
        self.text += [*(tokens[node] for node in verdict.path), following]
        self._probs.append(probs[on_device([ROOT, *verdict.path], probs.device)])
        self._num_steps += 1

    @property
    def proposal(self) -> Proposal:
        """The whole chain."""
        root, drafted = self.text[self._num_committed - 1], self.text[self._num_committed :]
        chain = CandidateTree.chain(root, drafted)
        return Proposal(chain, Draw.SINGLE, torch.cat(self._probs), self._num_steps)


def _behind(logits: Tensor, unread: Sequence[int]) -> Tensor:  # [B, M, V], [B] -> [B, M', V]
    """Leave out the logits of the first `unread` tokens of each row."""
    if not any(unread):
        return logits
    width = logits.shape[1] - min(unread)
    places = [[min(first + n, logits.shape[1] - 1) for n in range(width)] for first in unread]
    index = on_device(places, logits.device)
    return logits[torch.arange(len(unread), device=logits.device)[:, None], index]


def require_drawn_chain(tree: TreePolicy) -> None:
    """Refuse a tree that is no chain of drawn tokens, or one that may end early.

    Raises:
        Unfit: it is.
    """
    if tree.min_confidence > 0:
        raise Unfit(
            f"tree.min_confidence={tree.min_confidence}: a cascade drafts all of its chain;"
            " expected 0"
        )
    if not (isinstance(tree, DrawnChain) and tree.is_drawn_chain):
        raise Unfit("tree: a cascade drafts one chain of drawn tokens; expected tree=chain")


def require_inner(inner: Proposer, rule: VerificationRule) -> None:
    """Refuse an inner proposer that wants hidden states, or a rule that its drafts are not for.

    Raises:
        UserError: so it is (Unfit), or the rule is not as lossless as it says.
    """
    name = type(inner).__qualname__
    if isinstance(inner, TreeFinisher):
        raise Unfit(f"inner: {name} drafts with the verifier's own layers, not the middle model's")
    if inner.layers:
        raise Unfit(
            f"inner: {name} reads hidden states of its model, which a cascade does not hand on;"
            " expected one that copies text, or a smaller model"
        )
    require_inner_rule(rule, inner.draw)


def require_inner_rule(rule: VerificationRule, draws: Draws) -> None:
    """Refuse a rule that would make q another distribution than the middle model's.

    Raises:
        UserError: it is not lossless for candidates that are drawn so (Unfit), or not as it says.
    """
    for draw in each_draw(draws):
        if draw is None:
            continue
        if draw not in rule.lossless_for:
            raise Unfit(
                f"rule: {type(rule).__qualname__} is not lossless for {draw.value} candidates, as"
                " the inner proposer's are; q would not be the middle model's"
            )
        prove_lossless(rule, draw)
