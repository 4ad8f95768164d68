"""One round of drafting and verifying, enumerated exactly.

The criterion: play one round, complete the emitted block with p, and the law of the text must be
p's. By induction over rounds the whole text then has p's law, provided that each round's noise is
new (that part is tested in tests/decoding, with real streams).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from toy import NO_END, Law, TextLaw, Tokens, complete, is_path, text_law, total_variation

from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Outcome, Proposal, Verdict
from specdec.verification.enumeration import outcomes

ROOT_TOKEN = 0  # the last committed token; the toy laws begin behind it
Parents = tuple[int, ...]  # the shape of a tree: `CandidateTree.parents`


class Block(NamedTuple):
    """What one round emits."""

    token_ids: Tokens
    num_accepted: int


Play = Callable[[Stream], Block]
Drafter = Callable[[Parents, Law, Stream], Proposal]


# --- drafting -----------------------------------------------------------------------------------


def independent(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Draw every child from q, whatever its siblings are; keep the rows of nodes with children."""
    tree = _grown(parents, lambda text, _: stream.choose(q(text)))
    return Proposal(tree, Draw.IID, draft_rows(tree, q, 1 + max(parents)))


def ranked(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Take the likeliest tokens for children, without noise."""
    return Proposal(_grown(parents, lambda text, rank: _ranking(q, text)[rank]))


def unlikely(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Take the least likely tokens for children: candidates may be as bad as they like."""
    return Proposal(_grown(parents, lambda text, rank: _ranking(q, text)[-1 - rank]))


def repeated(parents: Parents, q: Law, stream: Stream) -> Proposal:
    """Give all children of a node the same token."""
    return Proposal(_grown(parents, lambda text, rank: _ranking(q, text)[0]))


# Each way to draw, and a drafter that draws so; a new one needs a line here.
DRAFTERS: dict[Draw, Drafter] = {Draw.IID: independent, Draw.DETERMINISTIC: ranked}


def _ranking(q: Law, text: Tokens) -> list[int]:
    return q(text).argsort(descending=True, stable=True).tolist()


def _grown(parents: Parents, child_token: Callable[[Tokens, int], int]) -> CandidateTree:
    """Choose tokens node by node, from the text above a node and its rank among its siblings."""
    texts: list[Tokens] = [()]
    for node, parent in enumerate(parents[1:], start=1):
        rank = parents[1:node].count(parent)
        texts.append((*texts[parent], child_token(texts[parent], rank)))
    return CandidateTree((ROOT_TOKEN, *(text[-1] for text in texts[1:])), parents)


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
    """Let the rule decide on a proposal; check that what it decided makes sense."""
    target_probs = draft_rows(proposal.tree, p)
    verdict = rule.verify(proposal, target_probs.clone(), stream)
    _check(proposal.tree, verdict)
    tokens = tuple(proposal.tree.token_ids[node] for node in verdict.path)
    return Block((*tokens, verdict.next_token), len(verdict.path))


def _check(tree: CandidateTree, verdict: Verdict) -> None:
    assert is_path(tree, verdict.path), f"{verdict.path} is no path from the root of {tree}"
    last = verdict.path[-1] if verdict.path else 0
    at_leaf = not tree.children[last]
    assert at_leaf == (verdict.outcome is Outcome.BONUS), (
        f"{verdict.outcome} after node {last} of {tree}: BONUS is for leaves, and only for them"
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
    blocks = outcomes(play)
    deepest = max(block.num_accepted for block in blocks)
    return [
        sum(mass for block, mass in blocks.items() if block.num_accepted >= depth)
        for depth in range(1, deepest + 1)
    ]


def depth_of(parents: Parents) -> int:
    """Return the number of levels below the root."""
    return max(CandidateTree(parents, parents).depths)


def chain(gamma: int) -> Parents:
    """Return the shape of a chain."""
    return tuple(range(-1, gamma))


def names(values: Sequence[object]) -> list[str]:
    """Name parameters in the list of tests."""
    return [str(value) for value in values]
