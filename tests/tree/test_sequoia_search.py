"""The dynamic programme for sampled trees: against every tree there is."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch

from specdec.tree.sequoia_search import PositionalTrees

Path = tuple[int, ...]
Rows = list[list[float]]
LARGEST = 7


@cache
def trees(size: int) -> frozenset[frozenset[Path]]:
    """All trees of `size` nodes below the root in which a child has all its elder siblings."""
    if size == 0:
        return frozenset({frozenset()})
    return frozenset(
        tree | {(*above, sum(path[:-1] == above and len(path) > len(above) for path in tree))}
        for tree in trees(size - 1)
        for above in [(), *tree]
    )


def value(tree: frozenset[Path] | Sequence[Path], rows: Rows) -> float:
    """E[A]: the sum over nodes of the product of the probabilities along the path."""
    total = 0.0
    for path in tree:
        product = 1.0
        for row, child in zip(rows, path, strict=False):
            product *= row[child]
        total += product
    return total


def fits(tree: frozenset[Path], rows: Rows) -> bool:
    """Whether no path is longer, and no child's number larger, than was measured."""
    return all(len(path) <= len(rows) and max(path) < len(rows[0]) for path in tree)


def random_rows(seed: int, depth: int, num_children: int) -> Rows:
    """Probabilities of events of which at most one happens; every third is zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(depth, num_children + 1, generator=generator, dtype=torch.float64) ** 2
    rows = weights / weights.sum(dim=1, keepdim=True)
    if seed % 2:
        rows[torch.rand(rows.shape, generator=generator) < 0.3] = 0.0
    return rows[:, :-1].tolist()


CASES = {
    **{f"random {seed}": random_rows(seed, 4, 3) for seed in range(6)},
    "shallow": random_rows(0, 2, 5),
    "one child": random_rows(2, 7, 1),
    "one level": random_rows(4, 1, 7),
    "sorted": [[0.6, 0.2, 0.1, 0.05]] * LARGEST,
    "a later child is better": [[0.1, 0.6, 0.2]] * LARGEST,
    "only the last child": [[0.0, 0.0, 0.9]] * 3,
    "ties": [[0.25, 0.25, 0.25]] * 3,
    "certain": [[1.0, 0.0]] * 4,
    "never": [[0.0, 0.0]] * 3,
}


def test_the_enumeration_is_complete() -> None:
    """There are as many ordered trees of n nodes below a root as the Catalan number of n."""
    assert [len(trees(size)) for size in range(LARGEST + 1)] == [1, 1, 2, 5, 14, 42, 132, 429]


@pytest.mark.parametrize("name", CASES)
def test_no_tree_of_as_many_nodes_is_better(name: str) -> None:
    """Up to 7 nodes, by brute force; and what is built is worth what is promised."""
    rows = CASES[name]
    found = PositionalTrees(rows, LARGEST)
    for size in range(1, LARGEST + 1):
        possible = [t for n in range(size + 1) for t in trees(n) if fits(t, rows)]
        best = max(value(tree, rows) for tree in possible)
        assert found.expected_accepted(size) == pytest.approx(best, abs=1e-12)
        nodes = found.nodes(size)
        assert frozenset(nodes) in possible, "not a tree, or too large"
        assert len(set(nodes)) == len(nodes)
        assert value(nodes, rows) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_nodes_that_bring_nothing_are_left_out(name: str) -> None:
    """Every leaf is accepted now and then."""
    rows = CASES[name]
    nodes = PositionalTrees(rows, LARGEST).nodes(LARGEST)
    for leaf in nodes:
        if not any(path[:-1] == leaf for path in nodes):
            younger = (*leaf[:-1], leaf[-1] + 1)
            assert value([leaf], rows) > 0 or younger in nodes
    assert (nodes == []) == (max(rows[0]) == 0)


def test_more_nodes_bring_less_and_less() -> None:
    """Of 128, and none of it lost to rounding or to the order of the table."""
    rows = [[0.55, 0.15, 0.08, 0.04, 0.02, 0.01]] * 20
    found = PositionalTrees(rows, 128)
    reached = [found.expected_accepted(size) for size in range(129)]
    gains = [after - before for before, after in pairwise(reached)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(gains))
    assert gains[-1] > 0
    for size in (1, 2, 37, 128):
        assert len(found.nodes(size)) == size
        assert value(found.nodes(size), rows) == pytest.approx(reached[size])
    # With p falling from child to child the best n nodes are simply the n most probable.
    open_paths: list[tuple[float, tuple[int, ...]]] = [(rows[0][0], (0,))]
    products: list[float] = []
    while len(products) < 128:
        open_paths.sort()
        product, path = open_paths.pop()
        products.append(product)
        open_paths.append((product * rows[0][0], (*path, 0)))
        if path[-1] + 1 < len(rows[0]):
            row = rows[0]
            open_paths.append(
                (product / row[path[-1]] * row[path[-1] + 1], (*path[:-1], path[-1] + 1))
            )
    assert reached[128] == pytest.approx(sum(products))
