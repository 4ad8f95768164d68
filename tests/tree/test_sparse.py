"""Rank paths: the tree that is written down is the tree that is grown."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.proposer.draft_model import DraftModel
from specdec.tree.sparse import Sparse
from tests.support.asking import context, proposals_of
from tests.support.toy import full_context, is_path, table_lm

V = 6
DISTRIBUTION = full_context(3, vocab_size=V)
PATHS = [[0, 0, 1], [2, 0], [0, 3], [1]]
# Level by level, siblings by rank; beginnings of paths are nodes too.
NODES = [(), (0,), (1,), (2,), (0, 0), (0, 3), (2, 0), (0, 0, 1)]


def ranked(text: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Follow a path of ranks through the distribution, token by token."""
    tokens: list[int] = []
    for rank in ranks:
        order = DISTRIBUTION((*text, *tokens)).argsort(descending=True, stable=True)
        tokens.append(int(order[rank]))
    return tokens


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(1.3, top_k=2)], ids=str)
def test_nodes_are_the_tokens_of_their_ranks(sampling: Sampling) -> None:
    """Two rows of unlike lengths; ranks are the draft's own, whatever the text is sampled with."""
    proposer = DraftModel(table_lm(DISTRIBUTION, V), Sparse(PATHS))
    rows = [context([1, 4, 2], row=0, sampling=sampling), context([5], row=1, sampling=sampling)]
    for one, proposal in zip(rows, proposals_of(proposer, *rows, vocab_size=V), strict=True):
        tree = proposal.tree
        assert (proposal.draw, proposal.draft_probs) == (Draw.DETERMINISTIC, None)
        assert tree.depths == tuple(map(len, NODES))
        for node, ranks in enumerate(NODES):
            path = [node]
            while tree.parents[path[0]] >= 0:
                path.insert(0, tree.parents[path[0]])
            assert is_path(tree, path[1:])
            drafted = [tree.token_ids[number] for number in path[1:]]
            assert drafted == ranked(one.token_ids, ranks), f"row {one.row}, path {ranks}"


def test_size_and_depth() -> None:
    tree = Sparse(PATHS)
    assert (tree.num_nodes, tree.max_depth, tree.max_rank) == (7, 3, 3)


def test_a_shallow_budget_cuts_whole_levels() -> None:
    proposer = DraftModel(table_lm(DISTRIBUTION, V), Sparse(PATHS))
    (proposal,) = proposals_of(proposer, context([1, 2], budget=3), vocab_size=V)
    assert max(proposal.tree.depths) == 2
    assert proposal.num_draft_calls == 2


def test_expanding_does_not_draw() -> None:
    level = Sparse([[1], [0]]).expand(None, 1, torch.tensor([[[0.2, 0.5, 0.3]]]), [])
    assert level.parents.tolist() == [[0, 0]]
    assert level.token_ids.tolist() == [[1, 2]]


@pytest.mark.parametrize("paths", [[], None, [[]], [[0], [-1]], [["a"]], [3], [[0.5]]])
def test_bad_paths_are_named(paths: Any) -> None:
    with pytest.raises(UserError, match=r"^paths"):
        Sparse(paths)
