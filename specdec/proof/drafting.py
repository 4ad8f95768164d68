"""Everything that can be drafted on a toy distribution, in each way of drawing candidates."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.randomness import Stream
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal
from specdec.proof.enumeration import outcomes

ROOT_TOKEN = 0  # the last committed token; the toy distributions begin behind it
Tokens = tuple[int, ...]
Conditional = Callable[[Tokens], Tensor]  # the tokens so far -> probabilities of the next one, [V]
Parents = tuple[int, ...]  # the shape of a tree: `CandidateTree.parents`
Drafter = Callable[[Parents, Conditional, Stream], Proposal]


def chain(gamma: int) -> Parents:
    """Return the shape of a chain."""
    return tuple(range(-1, gamma))


def single(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Draw the one child of each node from q; keep the rows of nodes with children."""
    assert parents == chain(len(parents) - 1)
    return replace(independent(parents, q, stream), draw=Draw.SINGLE)


def independent(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Draw every child from q, whatever its siblings are; keep the rows of nodes with children."""
    tree = _grown(parents, lambda text, above: stream.choose(q(text)))
    return Proposal(tree, Draw.IID, draft_rows(tree, q, 1 + max(parents)))


def whole_paths(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Draw chains that know nothing of each other: below the root no node has two children."""
    assert max(map(parents[1:].count, range(1, len(parents))), default=0) <= 1
    return replace(independent(parents, q, stream), draw=Draw.PATHS)


def without_replacement(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Draw each child from q without its elder siblings; none where q has no more tokens."""
    tree = _grown(parents, lambda text, above: _drawn(_without(q(text), above), stream))
    return Proposal(tree, Draw.WITHOUT_REPLACEMENT, draft_rows(tree, q))


def top_plus_one(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Take the likeliest tokens for all children but the last, and draw that from the others."""

    def token(text: Tokens, above: Tokens, is_last: bool) -> int | None:
        if is_last:
            return _drawn(_without(q(text), above), stream)
        best = _ranking(q, text)[len(above)]
        return best if q(text)[best] > 0 else None

    tree = _grown_knowing_last(parents, token)
    return Proposal(tree, Draw.TOP_PLUS_ONE, draft_rows(tree, q))


def top_plus_one_at_any_rate(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Take the likeliest tokens even where q gives them nothing, as somebody's tree may."""

    def token(text: Tokens, above: Tokens, is_last: bool) -> int | None:
        if is_last:
            return _drawn(_without(q(text), above), stream)
        return _ranking(q, text)[len(above)]

    tree = _grown_knowing_last(parents, token)
    return Proposal(tree, Draw.TOP_PLUS_ONE, draft_rows(tree, q))


PASSES = 0.3  # the probability that a draft token needs in order to be submitted


def filtered(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
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


def ranked(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Take the likeliest tokens for children, without noise."""
    return Proposal(_grown(parents, lambda text, above: _ranking(q, text)[len(above)]))


def unlikely(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Take the least likely tokens for children: candidates may be as bad as they like."""
    return Proposal(_grown(parents, lambda text, above: _ranking(q, text)[-1 - len(above)]))


def repeated(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
    """Give all children of a node the same token."""
    return Proposal(_grown(parents, lambda text, above: _ranking(q, text)[0]))


# Each way to draw, and a drafter that draws so; a new one needs a line here.
DRAFTERS: dict[Draw, Drafter] = {
    Draw.DETERMINISTIC: ranked,
    Draw.SINGLE: single,
    Draw.IID: independent,
    Draw.PATHS: whole_paths,
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


def _ranking(q: Conditional, text: Tokens) -> list[int]:
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
    return tuple(tree.token_ids[node] for node in tree.path_to(node))


def draft_rows(tree: CandidateTree, q: Conditional, num_rows: int | None = None) -> Tensor:
    """Return q after each of the first nodes; an empty matrix if there are none."""
    num_rows = len(tree.parents) if num_rows is None else num_rows
    rows = [q(text_at(tree, node)) for node in range(num_rows)]
    return torch.stack(rows) if rows else q(()).new_empty(0, len(q(())))


class Drafted(NamedTuple):
    """One of the proposals that a drafter can make, and how probable it is."""

    proposal: Proposal
    mass: float


class _Held:
    """Keeps a proposal apart from equal ones, which could be drawn in other ways."""

    def __init__(self, proposal: Proposal):
        self.proposal = proposal


@torch.inference_mode()
def drafts(drafter: Drafter, parents: Parents, q: Conditional) -> list[Drafted]:
    """Return everything that can be drafted."""
    held = outcomes(lambda stream: _Held(drafter(parents, q, stream)))
    return [Drafted(each.proposal, mass) for each, mass in held.items()]
