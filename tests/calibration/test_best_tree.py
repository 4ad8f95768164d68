"""The tree that is the best where its own steps begin."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations, product

import pytest
import torch
from torch import Tensor

from specdec.calibration.best_tree import Ranked, best_tree, budgets, ranked
from specdec.calibration.path_counts import PathCounts, expected_block_efficiency
from specdec.core.ordering import BEHIND_ALL
from specdec.core.sampling import Sampling
from specdec.metrics import block_efficiency
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.replaying.expected_steps import tally
from specdec.replaying.survival import ahead
from specdec.tree.fixed import Path
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.replaying.test_coverage import LENGTH, Q, distribution, texts_of
from tests.support.toy import table_lm

DEPTH, NUM_NODES = 3, 4


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return [text for seed in (1, 2) for text in renamed(texts_of(seed), seed)]


def renamed(texts: list[Text], seed: int) -> list[Text]:
    return [
        Text(f"{seed}-{t.prompt_id}", "", 0, t.prompt_ids, t.output_ids, t.log_p, "length", LENGTH)
        for t in texts
    ]


@pytest.fixture(scope="module")
def parts(texts: list[Text]) -> list[Ranked]:
    return ranked(texts, distributions(), DEPTH, vocab_size=3, sampling=Sampling())


def distributions() -> ModelDistributions:
    return ModelDistributions(table_lm(lambda tokens: distribution(Q)(tokens[1:])))


def tau(texts: list[Text], nodes: list[Path], sampling: Sampling | None = None) -> float:
    sampling = sampling or Sampling()
    found = replay(
        texts, distributions(), {"arm": ClosedArm(Sparse(nodes), Rejection())}, sampling, None, 3
    )
    return block_efficiency(tally(found["arm"])).value or 0.0


def test_no_tree_of_that_size_is_better(texts: list[Text], parts: list[Ranked]) -> None:
    """All trees of four nodes are tried, in replay."""
    ours = best_tree(parts, NUM_NODES, max_rank=2)
    found = {nodes: tau(texts, list(nodes)) for nodes in closed_sets(NUM_NODES)}
    assert tau(texts, ours.nodes) == pytest.approx(ours.block_efficiency, abs=1e-9)
    assert ours.block_efficiency == pytest.approx(max(found.values()), abs=1e-12)
    assert len(found) > 50


def closed_sets(size: int) -> list[tuple[Path, ...]]:
    paths = [p for depth in range(1, DEPTH + 1) for p in product(range(3), repeat=depth)]
    return [
        nodes
        for nodes in combinations(paths, size)
        if all(len(path) == 1 or path[:-1] in nodes for path in nodes)
    ]


def test_expected_efficiency_is_what_replay_says(texts: list[Text], parts: list[Ranked]) -> None:
    """The mean over positions, weighed with its own step starts, is the mean over steps."""
    ours = best_tree(parts, NUM_NODES, max_rank=2)
    held = [ours.counts.count(path) for path in ours.nodes]
    expected = expected_block_efficiency(held, ours.counts.num_positions)[-1]
    assert expected == pytest.approx(tau(texts, ours.nodes), abs=1e-9)


def never_twice(input_ids: Tensor, scores: Tensor) -> Tensor:
    """A processor: the token before does not come again."""
    return scores.scatter(1, input_ids[:, -1:], float("-inf"))


def test_trees_are_chosen_behind_the_processors_of_decoding(texts: list[Text]) -> None:
    sampling = Sampling(processors=[never_twice])
    ours = best_tree(ranked(texts, distributions(), DEPTH, 3, sampling), NUM_NODES, max_rank=2)
    raw = best_tree(ranked(texts, distributions(), DEPTH, 3, Sampling()), NUM_NODES, max_rank=2)
    reached = tau(texts, ours.nodes, sampling)
    assert ours.block_efficiency == pytest.approx(reached, abs=1e-9)
    assert reached > tau(texts, raw.nodes, sampling) + 0.01


class DistributionsByDepth(ModelDistributions):
    """The same distributions, told depth by depth, as heads tell theirs."""

    def along(self, texts: Sequence[Text], vocab_size: int) -> Iterator[Tensor]:
        (logits,) = super().along(texts, vocab_size)
        yield from (ahead(logits, depth) for depth in range(1, DEPTH + 1))


def test_at_each_depth_processors_see_the_text_above_it(texts: list[Text]) -> None:
    sampling = Sampling(processors=[never_twice])
    by_depth = DistributionsByDepth(distributions().model, DEPTH)
    several = [ranked(texts, each, DEPTH, 3, sampling) for each in (by_depth, distributions())]
    for found, usual in zip(*several, strict=True):
        assert torch.equal(found.ranks, usual.ranks)


def test_over_all_positions_it_looks_better_than_it_is(
    texts: list[Text], parts: list[Ranked]
) -> None:
    ranks = torch.cat([part.ranks.flatten(0, 1) for part in parts]).clamp(max=3)
    counts = PathCounts(ranks, max_rank=2)
    nodes = counts.most_frequent(NUM_NODES)
    held = [counts.count(path) for path in nodes]
    uniform = expected_block_efficiency(held, counts.num_positions)[-1]
    assert uniform > 1.03 * tau(texts, nodes)


def test_no_path_holds_deeper_than_candidates_go(parts: list[Ranked]) -> None:
    for part in parts:
        assert bool((part.ranks[:, LENGTH - 1] == BEHIND_ALL).all())  # the verifier's own token
        assert bool((part.ranks[:, LENGTH - 2, 1:] == BEHIND_ALL).all())
        assert bool((part.ranks[:, : LENGTH - 3] < 3).all())


def test_weights_of_one_are_counts(parts: list[Ranked]) -> None:
    ranks = torch.cat([part.ranks.flatten(0, 1) for part in parts]).clamp(max=3)
    plain = PathCounts(ranks, max_rank=2)
    weighed = PathCounts(ranks, 2, torch.ones(len(ranks), dtype=torch.float64))
    assert weighed.most_frequent(9) == plain.most_frequent(9)
    for path in plain.most_frequent(9):
        assert weighed.count(path) == plain.count(path)
    assert weighed.marginals.tolist() == plain.marginals.tolist()


def test_where_nothing_is_ranked_there_is_no_tree(parts: list[Ranked]) -> None:
    nothing = [Ranked(part.texts, torch.full_like(part.ranks, BEHIND_ALL)) for part in parts]
    found = best_tree(nothing, NUM_NODES, max_rank=2)
    assert (found.nodes, found.block_efficiency) == ([], 1.0)


def test_a_node_pays_as_long_as_its_gain_is_above_its_price(
    texts: list[Text], parts: list[Ranked]
) -> None:
    """The fastest size is where gains less prices, added up, are the largest (Dinkelbach 1967)."""
    nodes = best_tree(parts, 8, max_rank=2).nodes
    found = budgets(parts, nodes, lambda some: 1.0 + 0.2 * len(some))
    assert [each.num_nodes for each in found] == list(range(9))
    for each in found[1:]:
        assert each.block_efficiency == pytest.approx(tau(texts, nodes[: each.num_nodes]), abs=1e-9)
    values = list(accumulate(each.gain - each.price for each in found))
    throughput = [each.throughput for each in found]
    assert values.index(max(values)) == throughput.index(max(throughput))
    assert 0 < throughput.index(max(throughput)) < 8
    dear = budgets(parts, nodes, lambda some: 1.0 + len(some))
    assert max(dear, key=lambda each: each.throughput).num_nodes == 0


class LateDistributions(ModelDistributions):
    """Distributions that begin behind the first place, as heads' behind a prompt of one token."""

    def first_start(self, text: Text) -> int:
        return 1


def test_no_path_holds_where_there_are_no_candidates_yet(texts: list[Text]) -> None:
    late = LateDistributions(table_lm(lambda tokens: distribution(Q)(tokens[1:])))
    several = [ranked(texts, each, 2, 3, Sampling()) for each in (late, distributions())]
    for found, usual in zip(*several, strict=True):
        assert (found.ranks[:, 0] == BEHIND_ALL).all()
        assert (usual.ranks[:, 0] < 3).all()
        assert torch.equal(found.ranks[:, 1:], usual.ranks[:, 1:])
