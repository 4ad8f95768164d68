"""Sampled trees: each child has exactly the distribution that the rules are told it has."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.tree.chain import Chain
from specdec.tree.sampled import Sampled, SampledTree
from tests.support.toy import EnumeratedStream, TextDistribution, Tokens, total_variation

CELLS = 12  # of the grid of uniform numbers; what is drawn from below is a multiple of 1 / 12
EXACT = 1e-12
FALSE_ALARM = 1e-6  # of the one test that draws random numbers
DISTRIBUTIONS = {
    "soft": (0.25, 0.5, 0.25),
    "tied": (1 / 3, 1 / 3, 1 / 3),
    "two tokens": (2 / 3, 0.0, 1 / 3),
    "one token": (0.0, 1.0, 0.0),
}


def children_of_root(
    tree: SampledTree, distribution: Sequence[float], stream: BranchingStream
) -> Tokens:
    """Grow the first level; a child that is not there is -1."""
    probs = torch.tensor([[list(distribution)]], dtype=torch.float64)
    streams: list[Any] = [EnumeratedStream(stream, CELLS)]
    level = tree.expand(None, 1, probs, streams)
    there = torch.ones_like(level.token_ids) if level.there is None else level.there
    return tuple(level.token_ids.where(there.bool(), -1)[0].tolist())


def independently(distribution: Sequence[float], above: Tokens, is_last: bool) -> list[float]:
    return list(distribution)


def without_replacement(distribution: Sequence[float], above: Tokens, is_last: bool) -> list[float]:
    left = [0.0 if token in above else mass for token, mass in enumerate(distribution)]
    return [mass / sum(left) for mass in left] if sum(left) > 0 else []


def top_plus_one(distribution: Sequence[float], above: Tokens, is_last: bool) -> list[float]:
    left = [0.0 if token in above else mass for token, mass in enumerate(distribution)]
    if is_last:
        return without_replacement(distribution, above, is_last)
    best = max(range(len(distribution)), key=lambda token: (token not in above, left[token]))
    return [float(token == best) for token in range(len(distribution))] if left[best] > 0 else []


# The distribution of a child after its elder siblings; empty: there is none.
CHILD_DISTRIBUTIONS: dict[str, Callable[[Sequence[float], Tokens, bool], list[float]]] = {
    "iid": independently,
    "without_replacement": without_replacement,
    "top_plus_one": top_plus_one,
}


def expected_distribution(draw: str, width: int, distribution: Sequence[float]) -> TextDistribution:
    """Multiply the distributions of the children, one after another."""
    found: TextDistribution = {(): 1.0}
    for number in range(width):
        longer: TextDistribution = {}
        for above, mass in found.items():
            row = CHILD_DISTRIBUTIONS[draw](distribution, above, number == width - 1)
            for token, share in enumerate(row):
                longer[(*above, token)] = mass * share
            if not row:
                longer[(*above, -1)] = mass
        found = longer
    return {tokens: mass for tokens, mass in found.items() if mass > 0}


@pytest.mark.parametrize("name", ["soft", "two tokens", "one token"])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("draw", CHILD_DISTRIBUTIONS)
def test_siblings_have_exactly_their_joint_distribution(draw: str, width: int, name: str) -> None:
    """By enumeration of all uniform numbers; order included, since rules ask in that order."""
    tree = Sampled([width], draw)
    distribution = outcomes(lambda stream: children_of_root(tree, DISTRIBUTIONS[name], stream))
    if width == 1:
        assert tree.draw is Draw.SINGLE
    expected = expected_distribution("iid" if width == 1 else draw, width, DISTRIBUTIONS[name])
    assert total_variation(distribution, expected) < EXACT


@pytest.mark.parametrize("seed", range(3))
def test_without_replacement_nothing_repeats_and_the_support_is_the_end(seed: int) -> None:
    """Two requests of three nodes each, with distributions of 0 ... 5 tokens more than none."""
    generator = torch.Generator().manual_seed(seed)
    distributions = torch.rand(2, 3, 7, generator=generator)
    sizes = torch.tensor([[1, 2, 3], [4, 5, 7]])
    distributions = distributions.masked_fill(
        distributions.argsort(dim=-1).argsort(dim=-1) >= sizes[..., None], 0.0
    )
    distributions = distributions / distributions.sum(dim=-1, keepdim=True)
    tree = SampledTree([(0,), (1,), (2,), (3,)], Draw.WITHOUT_REPLACEMENT)
    found = tree.candidates(distributions, 4, [RandomStream(seed, row) for row in range(2)])
    assert found.there is not None
    for row in range(2):
        for node in range(3):
            there = found.there[row, node].tolist()
            num = min(4, int(sizes[row, node]))
            assert there == [True] * num + [False] * (4 - num)
            tokens = found.token_ids[row, node, :num].tolist()
            assert len(set(tokens)) == num
            assert all(distributions[row, node, token] > 0 for token in tokens)


def test_the_fixed_children_are_the_likeliest() -> None:
    """And the last one is none of them, whatever the noise."""
    distributions = torch.rand(4, 5, 9, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    tree = Sampled([3], "top_plus_one")
    for seed in range(5):
        found = tree.candidates(distributions, 3, [RandomStream(seed, row) for row in range(4)])
        assert torch.equal(found.token_ids[..., :2], distributions.topk(2, dim=-1).indices)
        assert (found.token_ids[..., 2:] != found.token_ids[..., :2]).all()
        assert found.there is not None
        assert found.there.all()


UNEVEN = [(0,), (1,), (0, 0), (0, 1), (1, 0)]  # the second child has one child, the first two


@pytest.mark.parametrize("draw", [Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE], ids=str)
def test_there_are_no_more_children_than_tokens(draw: Draw) -> None:
    tree = Sampled([7, 1], draw.value)
    distribution = torch.tensor([[[0.5, 0.3, 0.2]]])
    found = tree.candidates(distribution, 7, [RandomStream(1)])
    assert found.token_ids.shape == (1, 1, 7)
    assert found.there is not None
    assert found.there.tolist() == [[[True] * 3 + [False] * 4]]
    assert sorted(found.token_ids[0, 0, :3].tolist()) == [0, 1, 2]
    assert int(found.token_ids.max()) < 3


@pytest.mark.parametrize("draw", [Draw.IID, Draw.WITHOUT_REPLACEMENT], ids=lambda d: d.value)
def test_a_node_with_fewer_children_gets_the_first_draws(draw: Draw) -> None:
    """Whatever its neighbour's are: its only child is a first draw, not a second."""
    tree = SampledTree(UNEVEN, draw)
    distributions = torch.tensor([[[2 / 3, 1 / 3], [2 / 3, 1 / 3]]], dtype=torch.float64)

    def play(stream: BranchingStream) -> Tokens:
        streams: list[Any] = [EnumeratedStream(stream, 3)]
        level = tree.expand(None, 2, distributions, streams)
        assert level.parents.tolist() == [[0, 0, 1]]
        return tuple(level.token_ids[0].tolist())

    pairs = expected_distribution(draw.value, 2, (2 / 3, 1 / 3))
    expected = {
        (*pair, token): mass * share
        for pair, mass in pairs.items()
        for token, share in enumerate((2 / 3, 1 / 3))
    }
    assert total_variation(outcomes(play), expected) < EXACT


@pytest.mark.parametrize("name", CHILD_DISTRIBUTIONS)
def test_a_tree_that_never_branches_is_a_sampled_chain(name: str) -> None:
    """Draw for draw, so that rules for chains may decide on it."""
    tree, chain = Sampled([1, 1, 1], name), Chain(3)
    assert tree.draw is chain.draw is Draw.SINGLE
    distributions = torch.rand(2, 1, 9, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    ours, theirs = (
        one.expand(None, 2, distributions, [RandomStream(1, row) for row in range(2)])
        for one in (tree, chain)
    )
    assert torch.equal(ours.token_ids, theirs.token_ids)
    assert ours.there is None


@pytest.mark.parametrize("draw", [Draw.IID, Draw.WITHOUT_REPLACEMENT], ids=lambda d: d.value)
def test_real_noise_gives_the_distribution_too(draw: Draw) -> None:
    """Pairs of siblings at 20 000 nodes of two requests: uniforms are neither shared nor reused."""
    distribution = (0.5, 0.3, 0.15, 0.05)
    distributions = torch.tensor(distribution).expand(2, 10_000, 4)
    tree = SampledTree([(0,), (1,)], draw)
    found = tree.candidates(distributions, 2, [RandomStream(0, row) for row in range(2)]).token_ids
    pairs = expected_distribution(draw.value, 2, distribution)
    expected = [20_000 * mass for mass in pairs.values()]
    flat = found.flatten(0, 1)
    seen = [int((flat == torch.tensor(pair)).all(dim=-1).sum()) for pair in pairs]
    assert sum(seen) == 20_000
    assert chisquare(seen, expected).pvalue > FALSE_ALARM
    # Neighbouring nodes, and the same node of both requests, must know nothing of each other.
    together: Tensor = 4 * found[:, 0::2, 0] + found[:, 1::2, 0]
    across: Tensor = 4 * found[0, :, 0] + found[1, :, 0]
    squares = [first * second for first in distribution for second in distribution]
    for joint in (together.flatten(), across):
        counts = joint.bincount(minlength=16).tolist()
        assert chisquare(counts, [len(joint) * s for s in squares]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("widths", [[], None, 3, [0], [2, -1], [1.5], ["a"], [True]], ids=str)
def test_bad_widths_are_named(widths: Any) -> None:
    with pytest.raises(UserError, match=r"^widths="):
        Sampled(widths, "iid")


@pytest.mark.parametrize("draw", ["single", "deterministic", "", None, "IID"], ids=str)
def test_bad_draws_are_named(draw: Any) -> None:
    with pytest.raises(UserError, match=r"^draw=.*iid, without_replacement, top_plus_one"):
        Sampled([2], draw)
