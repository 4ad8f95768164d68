"""Dynamic trees: the best candidates by joint draft probability, whatever shape that is."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw
from specdec.proposer.draft_model import DraftModel
from specdec.tree.dynamic import Dynamic
from tests.support.asking import context, proposals_of
from tests.support.toy import Conditional, Tokens, full_context, gridded, table_lm

V = 4
DISTRIBUTIONS: dict[str, Conditional] = {
    **{f"random {seed}": full_context(seed, 0.6, V) for seed in range(4)},
    "flat": full_context(7, 30.0, V),
    "peaked": full_context(8, 0.1, V),
    "zeros and ties": gridded(3, 4, V),
    "more zeros and ties": gridded(5, 2, V),
}
each_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


def grown(
    distribution: Conditional, tree: Dynamic, *prompts: Sequence[int], budget: int = 99
) -> list[CandidateTree]:
    rows = [context(prompt, budget, row) for row, prompt in enumerate(prompts)]
    proposals = proposals_of(DraftModel(table_lm(distribution, V), tree), *rows, vocab_size=V)
    assert all(each.draw is Draw.DETERMINISTIC for each in proposals)
    assert all(each.draft_probs is None for each in proposals)
    return [each.tree for each in proposals]


def paths_of(tree: CandidateTree) -> list[Tokens]:
    """The tokens on the way to each node, the root's left out."""
    paths: list[Tokens] = [()]
    for token, parent in zip(tree.token_ids[1:], tree.parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths[1:]


def joint(distribution: Conditional, prompt: Sequence[int], path: Tokens) -> float:
    product = 1.0
    for depth, token in enumerate(path):
        product *= float(distribution((*prompt, *path[:depth]))[token])
    return product


def best_first(
    distribution: Conditional, prompt: Sequence[int], num_nodes: int, max_depth: int
) -> list[float]:
    """The largest joint probabilities of all paths that the draft can take, largest first."""
    level: list[Tokens] = [()]
    found: list[float] = []
    for _ in range(max_depth):
        level = [(*path, token) for path in level for token in range(V)]
        found += [joint(distribution, prompt, path) for path in level]
    return sorted((score for score in found if score > 0), reverse=True)[:num_nodes]


def beam_search(
    distribution: Conditional, prompt: Sequence[int], num_nodes: int, max_depth: int, beam: int
) -> list[float]:
    """Each level's `beam` best paths, each of them with its `beam` likeliest tokens."""
    frontier: list[Tokens] = [()]
    found: list[float] = []
    for _ in range(max_depth):
        level: list[Tokens] = []
        for path in frontier:
            row = distribution((*prompt, *path))
            level += [(*path, token) for token in row.topk(min(beam, V)).indices.tolist()]
        level.sort(key=lambda path: joint(distribution, prompt, path), reverse=True)
        found += [joint(distribution, prompt, path) for path in level]
        frontier = level[:beam]
    return sorted(found, reverse=True)[:num_nodes]


def scores(distribution: Conditional, prompt: Sequence[int], tree: CandidateTree) -> list[float]:
    paths = paths_of(tree)
    assert len(set(paths)) == len(paths), "a path twice"
    return sorted((joint(distribution, prompt, path) for path in paths), reverse=True)


@each_distribution
@pytest.mark.parametrize("num_nodes", [1, 2, 5, 11])
@pytest.mark.parametrize("max_depth", [1, 3])
def test_with_a_wide_beam_no_other_nodes_are_better(
    name: str, num_nodes: int, max_depth: int
) -> None:
    """Against all paths; scores are compared, because of equal ones any may be chosen."""
    distribution = DISTRIBUTIONS[name]
    (tree,) = grown(distribution, Dynamic(num_nodes, max_depth, beam=num_nodes), (1, 2))
    expected = best_first(distribution, (1, 2), num_nodes, max_depth)
    assert scores(distribution, (1, 2), tree) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in DISTRIBUTIONS if "ties" not in name])
@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_narrow_beam_keeps_the_best_of_each_level(name: str, beam: int) -> None:
    distribution = DISTRIBUTIONS[name]
    for num_nodes in (2, 7, 30):
        (tree,) = grown(distribution, Dynamic(num_nodes, 3, beam), (3,))
        expected = beam_search(distribution, (3,), num_nodes, 3, beam)
        assert scores(distribution, (3,), tree) == pytest.approx(expected, abs=1e-12)


@each_distribution
@pytest.mark.parametrize("min_gain", [0.05, 0.2, 1.0])
def test_nodes_that_bring_too_little_are_left_out(name: str, min_gain: float) -> None:
    """All others are there, as long as there is room; no node is lost with another."""
    distribution = DISTRIBUTIONS[name]
    tree = Dynamic(40, 3, beam=40, min_gain=min_gain)
    assert tree.may_stop
    (found,) = grown(distribution, tree, (0,))
    expected = [score for score in best_first(distribution, (0,), 40, 3) if score >= min_gain]
    assert scores(distribution, (0,), found) == pytest.approx(expected, abs=1e-12)


@each_distribution
def test_each_request_has_its_own_shape_and_is_like_alone(name: str) -> None:
    distribution = DISTRIBUTIONS[name]
    prompts = [(0,), (1, 3, 2), (2, 2), (3,)]
    for tree in (Dynamic(6, 3, 3), Dynamic(9, 3, 4, 0.1), Dynamic(9, 3, 4, min_confidence=0.5)):
        together = grown(distribution, tree, *prompts)
        alone = [grown(distribution, tree, prompt)[0] for prompt in prompts]
        assert together == alone
    shapes = {found.parents for found in grown(distribution, Dynamic(6, 3, 3), *prompts)}
    assert len(shapes) > 1


@each_distribution
def test_siblings_stand_in_the_order_of_their_probabilities(name: str) -> None:
    """And a node's children are its likeliest tokens: none is skipped."""
    distribution = DISTRIBUTIONS[name]
    (tree,) = grown(distribution, Dynamic(12, 3, 4), (2, 1))
    paths = [(), *paths_of(tree)]
    for node, children in enumerate(tree.children):
        row = distribution((2, 1, *paths[node]))
        probs = [float(row[tree.token_ids[child]]) for child in children]
        assert probs == sorted(row.tolist(), reverse=True)[: len(children)]


@each_distribution
def test_without_confidence_a_node_has_no_children(name: str) -> None:
    """Known before anything is chosen: the likeliest token after the node is too unlikely."""
    distribution = DISTRIBUTIONS[name]
    (tree,) = grown(
        distribution, Dynamic(84, 3, 84, min_confidence=0.5), (1,)
    )  # room for all there are
    inner = [(), *paths_of(tree)]
    for node, children in enumerate(tree.children):
        row = distribution((1, *inner[node]))
        goes_on = float(row.max()) >= 0.5 and tree.depths[node] < 3
        assert len(children) == (int((row > 0).sum()) if goes_on else 0)


def test_children_of_a_node_without_confidence_take_no_places_in_the_beam() -> None:
    """Token 0 is the likeliest, but nothing after it is; what follows token 1 is all there is."""

    def distribution(context: Tokens) -> torch.Tensor:
        after = {0: [0.25] * 4, 1: [0.9, 0.1, 0, 0]}.get(context[-1], [0.25] * 4)
        return torch.tensor([0.8, 0.2, 0, 0] if len(context) == 1 else after)

    (tree,) = grown(distribution, Dynamic(8, 3, beam=2, min_confidence=0.5), (2,))
    assert sorted(paths_of(tree)) == [(0,), (1,), (1, 0), (1, 1), (1, 1, 0), (1, 1, 1)]


def test_a_shallow_budget_makes_a_shallow_tree() -> None:
    distribution = DISTRIBUTIONS["random 0"]
    (tree,) = grown(distribution, Dynamic(6, 3, 6), (1,), budget=3)
    assert scores(distribution, (1,), tree) == pytest.approx(best_first(distribution, (1,), 6, 2))


def test_the_text_s_temperature_does_not_change_the_tree() -> None:
    """Candidates are chosen by the draft's own probabilities, also for greedy text."""
    distribution = DISTRIBUTIONS["random 1"]
    proposer = DraftModel(table_lm(distribution, V), Dynamic(6, 3, 6))
    trees = [
        proposals_of(proposer, context([1], sampling=sampling), vocab_size=V)[0].tree
        for sampling in (Sampling(0), Sampling(1), Sampling(2.0, top_k=1))
    ]
    assert trees[0] == trees[1] == trees[2]
    assert trees[0].num_draft_tokens == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_nodes": 0}, r"^num_nodes=0"),
        ({"max_depth": 0}, r"^max_depth=0"),
        ({"beam": 0}, r"^beam=0"),
        ({"min_gain": 1.5}, r"^min_gain=1\.5"),
        ({"min_confidence": -1}, r"^min_confidence=-1"),
    ],
    ids=str,
)
def test_bad_options_of_a_dynamic_tree_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dynamic(**options)


def test_rounding_never_separates_a_child_from_its_parent() -> None:
    """With certain tokens a child's score equals its parent's; the parent is kept first."""
    certain = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    for num_nodes in range(1, 6):
        (tree,) = grown(lambda text: certain, Dynamic(num_nodes, 5, beam=2), (0,))
        assert paths_of(tree) == [(1,) * depth for depth in range(1, num_nodes + 1)]
