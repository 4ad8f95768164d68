"""Best-first trees: exactly the likeliest paths, held against a list of all paths there are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Level
from specdec.proposer.draft_model import DraftModel
from specdec.tree.best_first import BestFirst
from specdec.tree.ranking import likeliest
from tests.support.asking import context, proposals_of
from tests.support.toy import Conditional, Tokens, full_context, gridded, table_lm, warped

V, D = 5, 3
SEEDED = torch.Generator().manual_seed(4)
BY_DEPTH = torch.rand(D + 1, V, generator=SEEDED, dtype=torch.float64) ** 3


def of_depth(tokens: Tokens) -> Tensor:
    """What parallel heads say behind a prompt of one token: each depth has a row of its own."""
    row = BY_DEPTH[len(tokens) - 1]
    return row / row.sum()


def of_parent(tokens: Tokens) -> Tensor:
    """First-order rows: those of the depth, corrected by the token before."""
    row = of_depth(tokens) * (1 + (torch.arange(V) + 2 * tokens[-1]) % 3)
    return row / row.sum()


DRAFTS: dict[str, Conditional] = {
    **{f"random {seed}": full_context(seed, 0.6, V) for seed in range(3)},
    "of depth": of_depth,
    "of parent": of_parent,
    "flat": full_context(7, 30.0, V),
    "peaked": full_context(8, 0.1, V),
    "zeros and ties": gridded(3, 4, V),
    "more zeros and ties": gridded(5, 2, V),
    "nothing but ties": lambda tokens: torch.full((V,), 1 / V, dtype=torch.float64),
}
each_draft = pytest.mark.parametrize("name", DRAFTS)


@dataclass
class Watched(BestFirst):
    """Notes how many nodes it is asked about at once."""

    tree: BestFirst
    numbers: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        vars(self).update(vars(self.tree))

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        self.numbers.append(draft_probs.shape[1])
        return super().expand(above, depth, draft_probs, streams)


def grown(
    draft: Conditional,
    tree: BestFirst,
    *prompts: Sequence[int],
    budgets: Sequence[int] = (),
    sampling: Sampling | None = None,
    temperature: float | None = None,
) -> list[CandidateTree]:
    each = budgets or [99] * len(prompts)
    rows = [
        context(prompt, budget, row, sampling=sampling)
        for row, (prompt, budget) in enumerate(zip(prompts, each, strict=True))
    ]
    proposer = DraftModel(table_lm(draft, V), tree, temperature)
    proposals = proposals_of(proposer, *rows, vocab_size=V)
    assert all(one.draw is Draw.DETERMINISTIC and one.draft_probs is None for one in proposals)
    return [one.tree for one in proposals]


def paths_of(tree: CandidateTree) -> list[Tokens]:
    """The tokens on the way to each node, the root's left out."""
    paths: list[Tokens] = [()]
    for token, parent in zip(tree.token_ids[1:], tree.parents[1:], strict=True):
        paths.append((*paths[parent], token))
    assert len(set(paths)) == len(paths), "a path twice"
    return paths[1:]


def ordered(
    draft: Conditional, prompt: Tokens = (1,), width: int = V, max_depth: int = D
) -> dict[Tokens, float]:
    """All paths and their probabilities, best first; equal ones stand in the order that is stated.

    The probabilities are multiplied as the tree multiplies them: equal ones are equal here, too.
    """
    rows = warped(draft, Sampling())
    level: list[tuple[Tokens, float]] = [((), 1.0)]
    found: list[tuple[Tokens, float]] = []
    for _ in range(max_depth):
        below: list[tuple[Tokens, float]] = []
        for path, above in level:
            row = enumerate(rows((*prompt, *path)).tolist())
            best = sorted(row, key=lambda pair: (-pair[1], pair[0]))[:width]
            below += [((*path, token), q * above) for token, q in best if q > 0]
        found += below
        level = below
    return dict(sorted(found, key=lambda pair: -pair[1]))  # stable


def best(found: dict[Tokens, float], number: int) -> set[Tokens]:
    return set(list(found)[:number])


@each_draft
@pytest.mark.parametrize("num_nodes", [1, 2, 5, 11, 40, 200])
@pytest.mark.parametrize("max_depth", [1, 3])
def test_exactly_the_likeliest_paths_are_there(name: str, num_nodes: int, max_depth: int) -> None:
    """The very ones: of equal ones those that come first in the order that is stated."""
    draft = DRAFTS[name]
    tree = Watched(BestFirst(num_nodes, max_depth))
    (found,) = grown(draft, tree, (1,))
    assert set(paths_of(found)) == best(ordered(draft, max_depth=max_depth), num_nodes)
    assert len(tree.numbers) == min(num_nodes, max_depth)
    assert all(map(int.__le__, tree.numbers, tree.parents)), "more rows than it says it asks for"


def test_no_more_rows_are_asked_for_than_a_tree_can_have_parents() -> None:
    """With room for n nodes a level at depth d has at most n - d nodes with children."""
    many = BestFirst(6, 4)
    assert many.parents == [1, 5, 4, 3]
    assert BestFirst(6, 4, width=2).parents == [1, 2, 4, 3]
    assert BestFirst(3, 9).parents == [1, 2, 1], "none is deeper than it has nodes"
    assert BestFirst(1).parents == [1]
    tree = Watched(many)
    grown(DRAFTS["flat"], tree, (1,))
    assert tree.numbers == [1, 5, 4, 3]


@each_draft
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_node_has_no_more_children_than_its_width(name: str, width: int) -> None:
    draft = DRAFTS[name]
    for num_nodes in (4, 12):
        (found,) = grown(draft, BestFirst(num_nodes, D, width), (1,))
        assert set(paths_of(found)) == best(ordered(draft, width=width), num_nodes)


@each_draft
@pytest.mark.parametrize("min_gain", [0.03, 0.2])
def test_paths_that_bring_too_little_are_left_out(name: str, min_gain: float) -> None:
    draft = DRAFTS[name]
    tree = BestFirst(60, D, min_gain=min_gain)
    assert tree.may_stop
    (found,) = grown(draft, tree, (1,))
    worth = {path: score for path, score in ordered(draft).items() if score >= min_gain}
    assert set(paths_of(found)) == best(worth, 60)


@each_draft
def test_each_request_has_its_own_tree_and_budget(name: str) -> None:
    """As if it were alone, and none deeper than what it may still emit."""
    draft = DRAFTS[name]
    prompts, budgets = [(0,), (4,), (2,), (3,)], [99, 3, 99, 2]
    for tree in (BestFirst(7, D), BestFirst(7, D, 2), BestFirst(20, D, min_gain=0.05)):
        together = grown(draft, tree, *prompts, budgets=budgets)
        for prompt, budget, found in zip(prompts, budgets, together, strict=True):
            assert [found] == grown(draft, tree, prompt, budgets=[budget])
            if not tree.may_stop:
                width = 2 if tree.parents[1] == 2 else V
                expected = ordered(draft, prompt, width, min(budget - 1, D))
                assert set(paths_of(found)) == best(expected, 7)


@each_draft
def test_siblings_stand_in_the_order_of_their_probabilities(name: str) -> None:
    """Of equal ones the smaller id comes first; no sibling that is better is left out."""
    draft = DRAFTS[name]
    rows = warped(draft, Sampling())
    (tree,) = grown(draft, BestFirst(14, D), (1,))
    paths = [(), *paths_of(tree)]
    for node, children in enumerate(tree.children):
        row = rows((1, *paths[node])).tolist()
        order = sorted(range(V), key=lambda token: (-row[token], token))
        assert [tree.token_ids[child] for child in children] == order[: len(children)]


@each_draft
def test_without_confidence_a_node_has_no_children(name: str) -> None:
    draft = DRAFTS[name]
    (tree,) = grown(draft, BestFirst(155, D, min_confidence=0.5), (1,))
    paths = [(), *paths_of(tree)]
    for node, children in enumerate(tree.children):
        row = draft((1, *paths[node]))
        goes_on = float(row.max()) >= 0.5 and tree.depths[node] < D
        assert len(children) == (int((row > 0).sum()) if goes_on else 0)


def test_paths_are_ranked_at_the_temperature_of_the_text() -> None:
    """Greedy text has none, and is ranked at 1; a draft's own temperature goes before both."""
    draft = DRAFTS["random 1"]

    def tree(sampling: Sampling, own: float | None = None) -> set[Tokens]:
        (found,) = grown(draft, BestFirst(8, D), (1,), sampling=sampling, temperature=own)
        return set(paths_of(found))

    def expected(temperature: float) -> set[Tokens]:
        return best(ordered(warped(draft, Sampling(temperature))), 8)

    assert len({frozenset(expected(each)) for each in (0.4, 1.0, 3.0)}) == 3
    for each in (0.4, 1.0, 3.0):
        assert tree(Sampling(each)) == expected(each)
        assert tree(Sampling(0.7), own=each) == expected(each)
    assert tree(Sampling(0)) == expected(1.0)
    assert tree(Sampling(1.0, top_k=1)) == expected(1.0), "what filters leave out is no candidate"


def test_equal_tokens_are_chosen_by_their_ids() -> None:
    """Also where many are as likely as the last one that there is room for."""
    rows = torch.tensor(
        [[0.1, 0.3, 0.1, 0.1, 0.3, 0.1], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.2, 0.1] * 3]
    )
    found, ids = likeliest(rows[None], 4)
    assert ids.tolist() == [[[1, 4, 0, 2], [2, 0, 1, 3], [0, 2, 4, 1]]]
    assert torch.equal(found, rows[None].gather(-1, ids))


def test_nodes_that_share_a_row_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And get what they would get one by one."""
    row = torch.rand(2, 1, 50, generator=torch.Generator().manual_seed(0))
    plain, sizes = Tensor.topk, list[torch.Size]()

    def noted(values: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(values.shape)
        return plain(values, *args, **kwargs)

    monkeypatch.setattr(Tensor, "topk", noted)
    shared = likeliest(row.expand(-1, 7, -1), 5)
    assert {size[1] for size in sizes} == {1}
    apart = likeliest(row.repeat(1, 7, 1), 5)
    for one, other in zip(shared, apart, strict=True):
        assert one.shape == (2, 7, 5)
        assert torch.equal(one, other)


def test_a_draft_whose_numbers_are_none_proposes_nothing_there() -> None:
    """NaN is no probability; the verifier decides."""
    found, ids = likeliest(torch.tensor([[[0.5, float("nan"), 0.5]]]), 2)
    assert found.shape == ids.shape == (1, 1, 2)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < 3
    nothing = Sampling().warp(torch.full((1, 1, V), float("nan")))
    tree = BestFirst(4, 2)
    level = tree.expand(None, 1, nothing, [])
    assert level.there is not None
    assert not level.there.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_nodes": 0}, r"^num_nodes=0"),
        ({"max_depth": 0}, r"^max_depth=0"),
        ({"width": 0}, r"^width=0"),
        ({"min_gain": 1.5}, r"^min_gain=1\.5"),
        ({"min_confidence": -1}, r"^min_confidence=-1"),
    ],
    ids=str,
)
def test_bad_options_of_a_best_first_tree_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BestFirst(**options)
