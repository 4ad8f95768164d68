"""What enters a pool, and what is found in it."""

from dataclasses import replace
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Proposal
from specdec.proposer.pool import Pool
from specdec.testing import check_proposer
from tests.support.asking import context, draft_ids, proposals_of


def after(pool: Pool, text: list[int], tree: CandidateTree, emitted: list[int]) -> Context:
    """Let somebody propose a tree behind a text, and the text go on otherwise."""
    begun = context(text)
    proposals_of(pool, begun)
    grown = replace(begun, token_ids=[*text, *emitted])
    pool.look_on([grown], [Proposal(tree)], [len(text)])
    return grown


def next_of(pool: Pool, grown: Context, *more: int) -> list[int]:
    later = replace(grown, token_ids=[*grown.token_ids, *more])
    return draft_ids(pool.propose([later])[0])


def test_refused_tokens_are_found_again() -> None:
    """5 was accepted, 6 was not: what was drafted behind 6 is known when 6 or 7 comes."""
    pool = Pool(3)
    grown = after(pool, [1, 2], CandidateTree.chain(2, [5, 6, 7, 8]), [5, 9])
    assert next_of(pool, grown) == []
    assert next_of(pool, grown, 6) == [7, 8]
    assert next_of(pool, grown, 7) == [8]
    assert next_of(pool, grown, 8) == []  # nothing was drafted behind it


def test_what_stood_before_a_refused_token_leads_to_it() -> None:
    """Behind 2, 5 came 6: not this time, maybe the next."""
    pool = Pool(2, min_ngram=2)
    grown = after(pool, [1, 2], CandidateTree.chain(2, [5, 6, 7]), [5, 9])
    assert next_of(pool, grown, 2, 5) == [9, 2]  # of the text itself, which has the same n-gram
    pool = Pool(2, max_ngram=3, min_ngram=3)
    grown = after(pool, [0, 1, 2], CandidateTree.chain(2, [6, 7]), [9])
    assert next_of(pool, grown, 2, 6) == []
    assert next_of(pool, grown, 1, 2, 6) == [7]


def test_accepted_tokens_alone_lead_nowhere() -> None:
    pool = Pool(3)
    grown = after(pool, [1, 2], CandidateTree.chain(2, [5, 6]), [5, 6, 9])
    assert next_of(pool, grown, 4) == []
    assert not pool._refused[0]._behind


def test_every_path_of_a_tree_enters() -> None:
    tree = CandidateTree((2, 5, 6, 7, 8), (-1, 0, 0, 1, 2))
    pool = Pool(3)
    grown = after(pool, [1, 2], tree, [9])
    assert next_of(pool, grown, 5) == [7]
    assert next_of(pool, grown, 6) == [8]


def test_the_text_goes_before_the_pool_unless_the_pool_knows_more() -> None:
    pool = Pool(1, max_ngram=2)
    grown = after(pool, [1, 2], CandidateTree.chain(2, [5, 6, 7]), [9])
    assert next_of(pool, grown, 6, 4, 6) == [4]
    assert next_of(pool, grown, 6, 4, 5, 6) == [7]


def test_the_oldest_go() -> None:
    pool = Pool(1, max_ngram=1, size=2)
    grown = after(pool, [1], CandidateTree.chain(1, [5, 6, 7, 8]), [9])
    assert [next_of(pool, grown, token) for token in (5, 6, 7)] == [[], [7], [8]]


def test_it_learns_from_its_own_candidates_and_keeps_its_protocol() -> None:
    check_proposer(lambda: Pool(3))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"gamma": 0}, "gamma=0: expected"),
        ({"gamma": 1, "size": 0}, "size=0: expected"),
        ({"gamma": 1, "max_ngram": 1, "min_ngram": 2}, "min_ngram=2: expected at most max_ngram=1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Pool(**options)
