"""Counting paths of ranks: the trees that follow are the best ones, and reach what they promise."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from specdec.calibration.path_counts import (
    PathCounts,
    calibration,
    expected_block_efficiency,
    product_paths,
)

Path = tuple[int, ...]
R = 3  # ranks 0 ... R - 1 count


def table(seed: int, positions: int = 60, depth: int = 3) -> Tensor:
    """Ranks that lean on those before them; a few are too high to count."""
    generator = torch.Generator().manual_seed(seed)
    columns: list[Tensor] = []
    for _ in range(depth):
        drawn = torch.randint(0, R + 2, (positions,), generator=generator)
        again = torch.rand(positions, generator=generator) < 0.5
        columns.append(torch.where(again, columns[-1], drawn) if columns else drawn)
    return torch.stack(columns, dim=1)


def brute_counts(ranks: Tensor) -> Counter[Path]:
    counts: Counter[Path] = Counter()
    for row in ranks.tolist():
        for depth in range(1, len(row) + 1):
            if row[depth - 1] >= R:
                break
            counts[tuple(row[:depth])] += 1
    return counts


def accepted(row: list[int], tree: Iterable[Path]) -> int:
    """Walk down from the root as far as the text stays in the tree."""
    nodes = {(), *tree}
    depth = 0
    while depth < len(row) and tuple(row[: depth + 1]) in nodes:
        depth += 1
    return depth


def closed_trees(size: int, depth: int) -> Iterator[frozenset[Path]]:
    """Enumerate all trees of `size` nodes below the root."""
    trees = {frozenset[Path]()}
    for _ in range(size):
        trees = {
            tree | {(*above, rank)}
            for tree in trees
            for above in [(), *tree]
            for rank in range(R)
            if len(above) < depth and (*above, rank) not in tree
        }
    yield from trees


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_a_loop(seed: int) -> None:
    ranks = table(seed)
    counts, expected = PathCounts(ranks, R - 1), brute_counts(ranks)
    for depth in (1, 2, 3):
        for path in product(range(R + 1), repeat=depth):
            assert counts.count(path) == expected[path], path
    assert set(counts.most_frequent(1000)) == set(expected)
    marginals = [[int((column == rank).sum()) for rank in range(R)] for column in ranks.T]
    assert counts.marginals.tolist() == marginals


def test_any_integers_will_do_and_deep_paths_do_not_overflow() -> None:
    """32 ranks at 16 depths are more paths than 64 bits can number."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(0, 32, (50, 16), generator=generator, dtype=torch.int32)
    counts = PathCounts(ranks.to(torch.int16), 31)
    for row in ranks.tolist():
        assert counts.count(tuple(row)) == 1
    assert counts.count((*ranks[0, :-1].tolist(), (int(ranks[0, -1]) + 1) % 32)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_the_most_frequent_paths_are_the_best_tree(seed: int) -> None:
    """Against every tree of as many nodes, scored by walking each position down it."""
    ranks = table(seed, positions=30)
    rows = ranks.tolist()
    counts = PathCounts(ranks, R - 1)
    for size in range(1, 5):
        best = max(sum(accepted(row, tree) for row in rows) for tree in closed_trees(size, 3))
        chosen = counts.most_frequent(size)
        assert len(set(chosen)) == size
        assert sum(accepted(row, chosen) for row in rows) == best


@pytest.mark.parametrize("seed", range(6))
def test_a_beginning_stands_before_its_path(seed: int) -> None:
    """Few positions, so that most counts are tied."""
    ranks = table(seed, positions=9, depth=4)
    counts = PathCounts(ranks, R - 1)
    pairs = counts.marginals.tolist(), counts.num_positions
    for paths in (counts.most_frequent(1000), product_paths(*pairs, 1000)):
        assert len(set(paths)) == len(paths) > 5
        for place, path in enumerate(paths):
            assert len(path) == 1 or path[:-1] in paths[:place], path
    shuffled = ranks[torch.randperm(9, generator=torch.Generator().manual_seed(seed))]
    assert PathCounts(shuffled, R - 1).most_frequent(9) == counts.most_frequent(9)


@pytest.mark.parametrize("seed", range(3))
def test_expected_block_efficiency_is_the_mean_over_positions(seed: int) -> None:
    """Of trees of every size and either kind: one token, and those that the text follows."""
    ranks = table(seed)
    found = calibration(PathCounts(ranks, R - 1), max_nodes=20)
    assert (found["num_positions"], found["depth"], found["max_rank"]) == (60, 3, R - 1)
    for kind in ("joint", "product"):
        paths, values = found[kind]["paths"], found[kind]["expected_block_efficiency"]
        assert len(paths) == len(values) > 15
        for size, value in enumerate(values, start=1):
            walked = [accepted(row, paths[:size]) for row in ranks.tolist()]
            assert value == pytest.approx(1 + sum(walked) / len(walked), abs=1e-12)


def test_product_paths_are_in_the_order_of_their_products() -> None:
    marginals = [[5, 20, 0, 9], [30, 1, 2, 0], [4, 4, 4, 4]]
    scores = {
        path: torch.tensor([marginals[d][r] / 40 for d, r in enumerate(path)]).double().prod()
        for depth in (1, 2, 3)
        for path in product(range(4), repeat=depth)
    }
    found = product_paths(marginals, 40, 1000)
    assert set(found) == {path for path, score in scores.items() if score > 0}
    values = [float(scores[path]) for path in found]
    assert values == sorted(values, reverse=True)
    assert found[:3] == [(1,), (1, 0), (3,)]


def test_where_ranks_hang_together_the_joint_tree_is_better() -> None:
    """Either 0, 0 or 1, 1: the marginals cannot tell that 0, 1 never happens."""
    ranks = torch.tensor([[0, 0]] * 6 + [[1, 1]] * 4)
    found = calibration(PathCounts(ranks, 1), max_nodes=4)
    assert found["joint"]["paths"] == [(0,), (0, 0), (1,), (1, 1)]
    assert found["joint"]["expected_block_efficiency"] == pytest.approx([1.6, 2.2, 2.6, 3.0])
    assert found["product"]["paths"] == [(0,), (1,), (0, 0), (0, 1)]
    assert found["product"]["counts"] == [6, 4, 6, 0]
    assert found["product"]["expected_block_efficiency"] == pytest.approx([1.6, 2.0, 2.6, 2.6])


def test_no_low_rank_at_all() -> None:
    counts = PathCounts(torch.full((5, 2), 9), R - 1)
    assert counts.most_frequent(3) == []
    assert counts.count((0, 0)) == 0
    assert product_paths(counts.marginals.tolist(), 5, 3) == []
    assert expected_block_efficiency([], 5) == []
