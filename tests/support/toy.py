"""Toy distributions that are known exactly, and models that speak them; shared by many tests."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Layer, Proposal, Verdict
from specdec.proof.enumeration import BranchingStream
from specdec.testing.table_lm import TableLM
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import Candidates
from specdec.tree.sampled import SampledTree

Tokens = tuple[int, ...]
Conditional = Callable[
    [Tokens], Tensor
]  # the tokens so far -> probabilities of the next one, [V] float64
TextDistribution = dict[Tokens, float]
NO_END: frozenset[int] = frozenset()


def full_context(seed: int, concentration: float = 0.7, vocab_size: int = 3) -> Conditional:
    """Make a table with one Dirichlet row for each prefix: nothing can be forgotten unnoticed."""

    @cache
    def distribution(tokens: Tokens) -> Tensor:
        generator = np.random.default_rng([seed, len(tokens), *tokens])
        return torch.from_numpy(generator.dirichlet(np.full(vocab_size, concentration)))

    return distribution


def gridded(seed: int, cells: int, vocab_size: int = 3) -> Conditional:
    """Make a table whose probabilities are multiples of 1 / cells; see `EnumeratedStream`."""

    @cache
    def distribution(tokens: Tokens) -> Tensor:
        generator = np.random.default_rng([seed, len(tokens), *tokens])
        shares = generator.dirichlet(np.ones(vocab_size))
        return torch.from_numpy(generator.multinomial(cells, shares) / cells)

    return distribution


def memoryless(*row: float) -> Conditional:
    """Make the distribution that draws every token from the same row."""
    probs = torch.tensor(row, dtype=torch.float64)
    return lambda tokens: probs


def markov(order: int, distribution: Conditional) -> Conditional:
    """Let a distribution see no more than the last `order` tokens."""
    return lambda tokens: distribution(tokens[-order:])


def mixture(first: Conditional, second: Conditional, weight: float) -> Conditional:
    """Mix two distributions: a draft that resembles its verifier."""
    return cache(lambda tokens: weight * first(tokens) + (1 - weight) * second(tokens))


def warped(distribution: Conditional, sampling: Sampling) -> Conditional:
    """Apply temperature and filters."""
    return cache(lambda tokens: sampling.warp(distribution(tokens).log()))


def text_distribution(
    distribution: Conditional, length: int, ends: frozenset[int] = NO_END, prompt: Tokens = ()
) -> TextDistribution:
    """Return the exact distribution of the text behind a prompt, up to `length` tokens."""
    return complete({(): 1.0}, distribution, length, ends, prompt)


def complete(
    texts: TextDistribution,
    distribution: Conditional,
    length: int,
    ends: frozenset[int] = NO_END,
    prompt: Tokens = (),
) -> TextDistribution:
    """Continue texts from `distribution`, token after token, up to `length` tokens or an end."""
    finished: TextDistribution = {}
    growing = dict(texts)
    while growing:
        text, mass = growing.popitem()
        assert len(text) <= length, f"{text} is longer than {length}"
        if len(text) == length or (text and text[-1] in ends):
            finished[text] = finished.get(text, 0.0) + mass
            continue
        for token, probability in enumerate(distribution(prompt + text).tolist()):
            if probability > 0:
                longer = (*text, token)
                growing[longer] = growing.get(longer, 0.0) + mass * probability
    return finished


def total_variation(first: TextDistribution, second: TextDistribution) -> float:
    """Return half the sum of the absolute differences."""
    texts = first.keys() | second.keys()
    return 0.5 * sum(abs(first.get(text, 0.0) - second.get(text, 0.0)) for text in texts)


def table_lm(distribution: Conditional, vocab_size: int = 3, max_length: int = 1 << 20) -> TableLM:
    """Make the language model that speaks `distribution`."""
    return TableLM(cache(lambda tokens: distribution(tokens).log()), vocab_size, max_length)


class EnumeratedStream:
    """What `RandomStream` offers, but every decision is enumerated by a `BranchingStream`.

    A uniform number is the middle of one of `cells` equal intervals. That is exact where the
    probabilities that it is compared with are multiples of 1 / cells.
    """

    def __init__(self, branching: BranchingStream, cells: int = 1):
        self._branching = branching
        self._cells = cells

    def under(self, *purpose: object) -> "EnumeratedStream":
        return self  # whatever decides here is enumerated

    def uniform(self) -> float:
        return (self.integer(self._cells) + 0.5) / self._cells

    def integer(self, bound: int) -> int:
        return self._branching.choose(torch.ones(bound))

    def accept(self, probability: float) -> bool:
        return self._branching.accept(probability)

    def choose(self, weights: Tensor) -> int:
        return self._branching.choose(weights)

    def choose_each(self, weights: Tensor) -> Callable[[int], int]:
        return self._branching.choose_each(weights)


class Choosing(SampledTree):
    """Draws that can be enumerated whatever q is, for a sampled tree of any shape."""

    def candidates(
        self, draft_probs: Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        rows = [
            [_children(distribution, width, self.draw, stream) for distribution in distributions]
            for distributions, stream in zip(draft_probs, streams, strict=True)
        ]
        found = torch.tensor(rows)
        return Candidates(found.clamp(min=0), found >= 0)


class ChoosingTree(Choosing):
    """A sampled tree given by the parents of its nodes, enumerable."""

    def __init__(self, parents: Sequence[int], draw: Draw = Draw.SINGLE):
        paths: list[Tokens] = [()]
        for node, parent in enumerate(parents[1:], start=1):
            paths.append((*paths[parent], tuple(parents[1:node]).count(parent)))
        super().__init__(paths[1:], draw)


class ChoosingFiltered(Choosing, Filtered):
    """The tree policy `Filtered`, enumerable."""


def _children(distribution: Tensor, width: int, draw: Draw, stream: RandomStream) -> list[int]:
    """Draw children of one node; -1 where there is nothing left to draw."""
    left, tokens = distribution.clone(), list[int]()
    for number in range(width):
        if left.sum() <= 0:
            tokens.append(-1)
        elif draw is Draw.TOP_PLUS_ONE and number < width - 1:
            tokens.append(int(left.argmax()))
        else:
            tokens.append(stream.choose(left))
        if draw in (Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE) and tokens[-1] >= 0:
            left[tokens[-1]] = 0.0
    return tokens


class ChoosingChain(ChoosingTree):
    """The tree policy `Chain`, enumerable."""

    def __init__(self, gamma: int):
        super().__init__(range(-1, gamma))


class RankedTree:
    """A proposer of trees: the children of each node are the likeliest tokens after it."""

    draw = Draw.DETERMINISTIC
    layers: Sequence[Layer] = ()

    def __init__(self, parents: Sequence[int], distribution: Conditional):
        self._parents = tuple(parents)
        self._distribution = distribution
        self.max_depth = max(CandidateTree(self._parents, self._parents).depths)

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        pass

    def reset(self, contexts: Sequence[Context]) -> None:
        pass

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [
            Proposal(ranked_tree(self._parents, self._distribution, c.token_ids)) for c in contexts
        ]

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        pass


def ranked_tree(
    parents: Sequence[int], distribution: Conditional, prompt: Sequence[int]
) -> CandidateTree:
    """Give the j-th child of each node the j-th likeliest token after it."""
    texts: list[Tokens] = [tuple(prompt)]
    num_children = [0] * len(parents)
    for parent in parents[1:]:
        ranking = distribution(texts[parent]).argsort(descending=True, stable=True).tolist()
        texts.append((*texts[parent], ranking[num_children[parent]]))
        num_children[parent] += 1
    return CandidateTree(tuple(text[-1] for text in texts), tuple(parents))


def is_path(tree: CandidateTree, nodes: Sequence[int]) -> bool:
    """Whether nodes lead downwards from a child of the root, each the child of the one before."""
    return all(tree.parents[node] == parent for parent, node in pairwise([0, *nodes]))
