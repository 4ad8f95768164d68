"""Candidate trees on hand examples: depths, children, ancestors, and what pruning leaves."""

import pytest

from specdec.core.tree import CandidateTree

Tokens = tuple[int, ...]
NO_END: frozenset[int] = frozenset()
#   0 -> 1 -> 3 -> 6 -> 7
#             3 -> 8
#        1 -> 4
#   0 -> 2 -> 5
UNEVEN = CandidateTree((50, 51, 52, 53, 54, 55, 56, 57, 58), (-1, 0, 0, 1, 1, 2, 3, 6, 3))


def chain(*token_ids: int) -> CandidateTree:
    return CandidateTree.chain(token_ids[0], token_ids[1:])


def pruned(tree: CandidateTree, depth: int, ends: set[int]) -> tuple[Tokens, Tokens, list[int]]:
    smaller, kept = tree.pruned(depth, frozenset(ends))
    return smaller.token_ids, smaller.parents, kept


# --- shapes -------------------------------------------------------------------------------------


def test_a_chain() -> None:
    tree = chain(9, 5, 6, 5)
    assert (tree.token_ids, tree.parents) == ((9, 5, 6, 5), (-1, 0, 1, 2))
    assert tree.is_chain
    assert tree.num_draft_tokens == 3
    assert tree.depths == (0, 1, 2, 3)
    assert tree.children == ((1,), (2,), (3,), ())
    assert tree.ancestors() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]


def test_paths_lead_from_below_the_root_to_a_node() -> None:
    assert [UNEVEN.path_to(node) for node in (0, 2, 7)] == [[], [2], [1, 3, 6, 7]]


def test_a_root_alone_is_a_chain() -> None:
    tree = chain(9)
    assert tree == CandidateTree((9,), (-1,))
    assert tree.is_chain
    assert (tree.num_draft_tokens, tree.depths, tree.children) == (0, (0,), ((),))
    assert tree.ancestors() == [[True]]


def test_an_uneven_tree() -> None:
    assert not UNEVEN.is_chain
    assert UNEVEN.num_draft_tokens == 8
    assert UNEVEN.depths == (0, 1, 1, 2, 2, 2, 3, 4, 3)
    assert UNEVEN.children == ((1, 2), (3, 4), (5,), (6, 8), (), (), (7,), (), ())
    lines = [set(n for n, seen in enumerate(row) if seen) for row in UNEVEN.ancestors()]
    assert lines == [
        {0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 1, 4}, {0, 2, 5}, {0, 1, 3, 6}, {0, 1, 3, 6, 7},
        {0, 1, 3, 8},
    ]  # fmt: skip


def test_the_picture_in_the_docstring() -> None:
    assert CandidateTree((0, 1, 2, 3), (-1, 0, 0, 1)).ancestors() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, False],
        [True, True, False, True],
    ]


def test_siblings_keep_the_order_in_which_they_were_drawn() -> None:
    """Also where they are not neighbours, and where a token was drawn twice."""
    tree = CandidateTree((0, 7, 7, 3, 5), (-1, 0, 0, 1, 0))
    assert tree.children == ((1, 2, 4), (3,), (), (), ())


def test_a_chain_whose_parents_are_swapped_is_a_tree() -> None:
    assert not CandidateTree((0, 1, 2), (-1, 0, 0)).is_chain
    assert CandidateTree((0, 1, 2), (-1, 0, 1)).is_chain


@pytest.mark.parametrize(
    ("token_ids", "parents"),
    [
        ((), ()),
        ((1,), (0,)),
        ((1, 2), (-1,)),
        ((1, 2), (-1, -1)),
        ((1, 2), (-1, 1)),
        ((1, 2, 3), (-1, 2, 0)),
    ],
    ids=str,
)
def test_what_is_no_tree_is_refused(token_ids: Tokens, parents: Tokens) -> None:
    with pytest.raises(AssertionError):
        CandidateTree(token_ids, parents)


def test_trees_are_values() -> None:
    assert chain(1, 2) == CandidateTree((1, 2), (-1, 0))
    assert chain(1, 2) != chain(1, 3)
    assert hash(chain(1, 2)) == hash(chain(1, 2))


# --- pruning ------------------------------------------------------------------------------------


def test_nothing_to_prune_gives_the_same_tree() -> None:
    for tree in (UNEVEN, chain(1, 2, 3), chain(1)):
        smaller, kept = tree.pruned(4, NO_END)
        assert smaller is tree
        assert kept == list(range(len(tree.parents)))


@pytest.mark.parametrize(
    ("depth", "kept"),
    [
        (0, [0]),
        (1, [0, 1, 2]),
        (2, [0, 1, 2, 3, 4, 5]),
        (3, [0, 1, 2, 3, 4, 5, 6, 8]),
        (4, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_pruning_by_depth(depth: int, kept: list[int]) -> None:
    smaller, found = UNEVEN.pruned(depth, NO_END)
    assert found == kept
    assert smaller.token_ids == tuple(UNEVEN.token_ids[node] for node in kept)
    assert smaller.depths == tuple(UNEVEN.depths[node] for node in kept)


def test_nodes_behind_a_gap_are_renumbered() -> None:
    """Node 8's parent 3 stays, but 7 between them goes: 8 becomes 7."""
    assert pruned(UNEVEN, 3, set()) == (
        (50, 51, 52, 53, 54, 55, 56, 58), (-1, 0, 0, 1, 1, 2, 3, 3), [0, 1, 2, 3, 4, 5, 6, 8],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        ({51}, [0, 1, 2, 5]),
        ({53}, [0, 1, 2, 3, 4, 5]),
        ({52, 56}, [0, 1, 2, 3, 4, 6, 8]),
        ({51, 52}, [0, 1, 2]),
        ({51, 53, 56}, [0, 1, 2, 5]),
        ({54, 55, 57, 58}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({99}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
    ids=str,
)
def test_an_end_token_is_a_leaf(ends: set[int], kept: list[int]) -> None:
    smaller, found = UNEVEN.pruned(9, frozenset(ends))
    assert found == kept, "an end token stays, what follows it goes"
    assert smaller.token_ids == tuple(UNEVEN.token_ids[node] for node in kept)


def test_several_ends_on_one_path_cut_at_the_first() -> None:
    assert pruned(chain(9, 4, 1, 5, 1, 6), 9, {1}) == ((9, 4, 1), (-1, 0, 1), [0, 1, 2])
    assert pruned(chain(9, 4, 2, 1, 5), 9, {1, 2}) == ((9, 4, 2), (-1, 0, 1), [0, 1, 2])


def test_an_end_token_in_one_branch_leaves_the_others() -> None:
    tree = CandidateTree((9, 1, 1, 4, 5, 6, 7), (-1, 0, 0, 0, 1, 2, 3))
    assert pruned(tree, 9, {1}) == ((9, 1, 1, 4, 7), (-1, 0, 0, 0, 3), [0, 1, 2, 3, 6])


def test_the_root_ends_nothing() -> None:
    """A prompt may end with an end token, of a chat turn, say."""
    tree = chain(1, 4, 1, 5)
    assert pruned(tree, 9, {1}) == ((1, 4, 1), (-1, 0, 1), [0, 1, 2])


def test_depth_and_ends_together() -> None:
    assert pruned(UNEVEN, 3, {53, 52}) == ((50, 51, 52, 53, 54), (-1, 0, 0, 1, 1), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("node", range(1, len(UNEVEN.parents)))
def test_whether_a_node_stays_does_not_depend_on_its_own_token(node: int) -> None:
    """Else pruning would look at what was drawn, and change the text's distribution."""
    token_ids = list(UNEVEN.token_ids)
    token_ids[node] = 99
    changed = CandidateTree(tuple(token_ids), UNEVEN.parents)
    _, kept = changed.pruned(3, frozenset({99}))
    below = {n for n, row in enumerate(UNEVEN.ancestors()) if row[node] and n != node}
    assert kept == [n for n in (0, 1, 2, 3, 4, 5, 6, 8) if n not in below]
