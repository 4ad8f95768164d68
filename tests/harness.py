"""One round of drafting and verifying, enumerated exactly.

The criterion: play one round, complete the emitted block with p, and the law of the text must be
p's. By induction over rounds the whole text then has p's law, provided that each round's noise is
new (that part is tested in tests/decoding, with real streams).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from toy import NO_END, Law, TextLaw, Tokens, complete, is_path, text_law, total_variation

from specdec.core.outcome import Outcome
from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.enumeration import outcomes

ROOT_TOKEN = 0  # the last committed token; the toy laws begin behind it
Parents = tuple[int, ...]  # the shape of a tree: `CandidateTree.parents`


class Block(NamedTuple):
    """What one round emits."""

    token_ids: Tokens
    num_accepted: int


Play = Callable[[Stream], Block]
Drafter = Callable[[Parents, Law, Stream], Proposal]
Seen = TypeVar("Seen", bound=Hashable)


# --- drafting -----------------------------------------------------------------------------------


def single(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Draw the one child of each node from q; keep the rows of nodes with children."""
    assert parents == chain(len(parents) - 1)
    return replace(independent(parents, q, stream), draw=Draw.SINGLE)


def independent(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Draw every child from q, whatever its siblings are; keep the rows of nodes with children."""
    tree = _grown(parents, lambda text, above: stream.choose(q(text)))
    return Proposal(tree, Draw.IID, draft_rows(tree, q, 1 + max(parents)))


def without_replacement(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Draw each child from q without its elder siblings; none where q has no more tokens."""
    tree = _grown(parents, lambda text, above: _drawn(_without(q(text), above), stream))
    return Proposal(tree, Draw.WITHOUT_REPLACEMENT, draft_rows(tree, q))


def top_plus_one(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Take the likeliest tokens for all children but the last, and draw that from the others."""

    def token(text: Tokens, above: Tokens, is_last: bool) -> int | None:
        if is_last:
            return _drawn(_without(q(text), above), stream)
        best = _ranking(q, text)[len(above)]
        return best if q(text)[best] > 0 else None

    tree = _grown_knowing_last(parents, token)
    return Proposal(tree, Draw.TOP_PLUS_ONE, draft_rows(tree, q))


def top_plus_one_at_any_rate(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Take the likeliest tokens even where q gives them nothing, as `tree.sampled` does."""

    def token(text: Tokens, above: Tokens, is_last: bool) -> int | None:
        if is_last:
            return _drawn(_without(q(text), above), stream)
        return _ranking(q, text)[len(above)]

    tree = _grown_knowing_last(parents, token)
    return Proposal(tree, Draw.TOP_PLUS_ONE, draft_rows(tree, q))


PASSES = 0.3  # the probability that a draft token needs in order to be submitted


def filtered(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Draw a chain from q, and end it before the first token that is less likely than PASSES."""

    def passing(text: Tokens) -> Tensor:
        return q(text) * (q(text) >= PASSES)

    text: Tokens = ()
    while len(text) < len(parents) - 1:
        token = stream.choose(q(text))
        if passing(text)[token] <= 0:
            break
        text = (*text, token)
    withheld = len(text) < len(parents) - 1
    tree = CandidateTree.chain(ROOT_TOKEN, text)
    rows = draft_rows(tree, passing, len(text) + withheld)
    return Proposal(tree, Draw.FILTERED, rows, withheld=withheld)


def ranked(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Take the likeliest tokens for children, without noise."""
    return Proposal(_grown(parents, lambda text, above: _ranking(q, text)[len(above)]))


def unlikely(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Take the least likely tokens for children: candidates may be as bad as they like."""
    return Proposal(_grown(parents, lambda text, above: _ranking(q, text)[-1 - len(above)]))


def repeated(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Give all children of a node the same token."""
    return Proposal(_grown(parents, lambda text, above: _ranking(q, text)[0]))


# Each way to draw, and a drafter that draws so; a new one needs a line here.
DRAFTERS: dict[Draw, Drafter] = {
    Draw.DETERMINISTIC: ranked,
    Draw.SINGLE: single,
    Draw.IID: independent,
    Draw.WITHOUT_REPLACEMENT: without_replacement,
    Draw.TOP_PLUS_ONE: top_plus_one,
    Draw.FILTERED: filtered,
}


def _drawn(weights: Tensor, stream: Stream) -> int | None:
    return stream.choose(weights) if weights.sum() > 0 else None


def _without(row: Tensor, tokens: Tokens) -> Tensor:
    left = row.clone()
    left[list(tokens)] = 0.0
    return left


def _ranking(q: Law, text: Tokens) -> list[int]:
    return q(text).argsort(descending=True, stable=True).tolist()


def _grown(parents: Parents, child_token: Callable[[Tokens, Tokens], int | None]) -> CandidateTree:
    """Choose tokens node by node, from the text above a node and the tokens of elder siblings.

    A node for which there is no token is left out, with all that would hang from it.
    """
    return _grown_knowing_last(parents, lambda text, above, _: child_token(text, above))


def _grown_knowing_last(
    parents: Parents, child_token: Callable[[Tokens, Tokens, bool], int | None]
) -> CandidateTree:
    place = {0: 0}  # of the shape's nodes in the tree
    texts: list[Tokens] = [()]
    above: list[int] = [-1]
    for node, parent in enumerate(parents[1:], start=1):
        if parent not in place:
            continue
        here = place[parent]
        elder = tuple(text[-1] for text, up in zip(texts, above, strict=True) if up == here)
        is_last = parent not in parents[node + 1 :]
        token = child_token(texts[here], elder, is_last)
        if token is not None:
            place[node] = len(texts)
            texts.append((*texts[here], token))
            above.append(here)
    return CandidateTree((ROOT_TOKEN, *(text[-1] for text in texts[1:])), tuple(above))


def text_at(tree: CandidateTree, node: int) -> Tokens:
    """Return the tokens between the root, without it, and a node, with it."""
    text: Tokens = ()
    while node > 0:
        text = (tree.token_ids[node], *text)
        node = tree.parents[node]
    return text


def draft_rows(tree: CandidateTree, q: Law, num_rows: int | None = None) -> Tensor:
    """Return q after each of the first nodes; an empty matrix if there are none."""
    num_rows = len(tree.parents) if num_rows is None else num_rows
    rows = [q(text_at(tree, node)) for node in range(num_rows)]
    return torch.stack(rows) if rows else q(()).new_empty(0, len(q(())))


# --- verifying ----------------------------------------------------------------------------------


def played(rule: VerificationRule, drafter: Drafter, parents: Parents, p: Law, q: Law) -> Play:
    """Return the round of one rule with one drafter, to be played with a stream."""

    def play(stream: Stream) -> Block:
        return verified(rule, drafter(parents, q, stream), p, stream)

    return play


def verified(rule: VerificationRule, proposal: Proposal, p: Law, stream: Stream) -> Block:
    """Let the rule decide on a proposal, and return what is emitted."""
    return emitted(proposal, judged(rule, proposal, p, stream))


def judged(rule: VerificationRule, proposal: Proposal, p: Law, stream: Stream) -> Verdict:
    """Let the rule decide on a proposal; check that what it decided makes sense."""
    target_probs = draft_rows(proposal.tree, p)
    verdict = rule.verify(proposal, target_probs.clone(), stream)
    _check(proposal, verdict)
    return verdict


def emitted(proposal: Proposal, verdict: Verdict) -> Block:
    """Return the accepted tokens and the one after them."""
    tokens = tuple(proposal.tree.token_ids[node] for node in verdict.path)
    return Block((*tokens, verdict.next_token), len(verdict.path))


class Drafted(NamedTuple):
    """One of the proposals that a drafter can make, and how probable it is."""

    proposal: Proposal
    mass: float


class _Held:
    """Keeps a proposal apart from equal ones, which could be drawn in other ways."""

    def __init__(self, proposal: Proposal):
        self.proposal = proposal


@torch.inference_mode()
def drafts(drafter: Drafter, parents: Parents, q: Law) -> list[Drafted]:
    """Return everything that can be drafted."""
    held = outcomes(lambda stream: _Held(drafter(parents, q, stream)))
    return [Drafted(each.proposal, mass) for each, mass in held.items()]


@torch.inference_mode()
def decisions(
    rule: VerificationRule, proposal: Proposal, p: Law, seen: Callable[[Verdict], Seen]
) -> dict[Seen, float]:
    """Return the law of something about the verdict on one proposal."""
    return outcomes(lambda stream: seen(judged(rule, proposal, p, stream)))


def block_law(rule: VerificationRule, drafted: Sequence[Drafted], p: Law) -> dict[Block, float]:
    """Return the law of what one round emits; as of `played`, but each draft is made only once."""
    law: dict[Block, float] = {}
    for proposal, mass in drafted:
        for block, share in decisions(rule, proposal, p, partial(emitted, proposal)).items():
            law[block] = law.get(block, 0.0) + mass * share
    return law


def at_least(blocks: dict[Block, float]) -> list[float]:
    """Return P(A >= d) for d = 1, 2, ..."""
    deepest = max(block.num_accepted for block in blocks)
    return [
        sum(mass for block, mass in blocks.items() if block.num_accepted >= depth)
        for depth in range(1, deepest + 1)
    ]


def _check(proposal: Proposal, verdict: Verdict) -> None:
    tree = proposal.tree
    assert is_path(tree, verdict.path), f"{verdict.path} is no path from the root of {tree}"
    last = verdict.path[-1] if verdict.path else 0
    withheld = proposal.withheld and last == tree.num_draft_tokens
    none_refused = not tree.children[last] and not withheld
    assert none_refused == (verdict.outcome is Outcome.BONUS), (
        f"{verdict.outcome} after node {last} of {tree}: BONUS is where no candidate was refused"
    )


# --- laws ---------------------------------------------------------------------------------------


def bias(play: Play, p: Law, length: int) -> float:
    """Return the total variation between the law of one round's text, completed, and p's."""
    return total_variation(completed(outcomes(play), p, length), text_law(p, length))


def completed(
    blocks: dict[Block, float], p: Law, length: int, ends: frozenset[int] = NO_END
) -> TextLaw:
    """Continue the emitted blocks with p."""
    texts: TextLaw = {}
    for block, mass in blocks.items():
        texts[block.token_ids] = texts.get(block.token_ids, 0.0) + mass
    return complete(texts, p, length, ends)


def acceptance(play: Play) -> list[float]:
    """Return P(A >= d) for d = 1, 2, ..."""
    return at_least(outcomes(play))


def depth_of(parents: Parents) -> int:
    """Return the number of levels below the root."""
    return max(CandidateTree(parents, parents).depths)


def chain(gamma: int) -> Parents:
    """Return the shape of a chain."""
    return tuple(range(-1, gamma))


def names(values: Sequence[object]) -> list[str]:
    """Name parameters in the list of tests."""
    return [str(value) for value in values]
