"""Prompt lookup on hand examples, and against a search that looks at everything."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.core.values import Draw
from specdec.proposer.ngram import NGram
from tests.support.asking import PLENTY, context, draft_ids, proposals_of


def found(text: str, budget: int = PLENTY, **options: int) -> str:
    """Return the candidate for a text of letters."""
    settings = {"gamma": 4, **options}
    (proposal,) = proposals_of(NGram(**settings), context([ord(c) for c in text], budget))
    return "".join(map(chr, draft_ids(proposal)))


@pytest.mark.parametrize(
    ("text", "candidate"),
    [
        ("abcdefabc", "defa"),  # what followed the last three letters before
        ("abxaby", ""),  # y is new
        ("ab1ab2ab", "2ab"),  # the latest occurrence wins, not the first
        ("ab1ab1ab2xab", "2xab"),  # ... also over a more frequent one
        ("cab1dab2cab", "1dab"),  # three letters beat a later match of two
        ("b1cab2ab", "2ab"),  # two letters beat one
        ("xb1ab", "1ab"),  # one letter is enough, if nothing longer is known
        ("aaaa", "a"),  # the candidate may overlap the suffix; it ends where the text ends
        ("ababa", "ba"),
        ("abab", "ab"),
        ("aa", "a"),
        ("ab", ""),
        ("a", ""),
    ],
)
def test_hand_examples(text: str, candidate: str) -> None:
    assert found(text) == candidate


def test_a_suffix_is_no_earlier_occurrence_of_itself() -> None:
    """Nothing follows it: the first occurrence is what counts, if there is one."""
    assert found("abc") == ""
    assert found("abc1abc") == "1abc"


def test_gamma_is_the_most_that_is_proposed() -> None:
    assert [found("abcdefgabc", gamma=gamma) for gamma in (1, 2, 9)] == ["d", "de", "defgabc"]


def test_never_more_than_the_budget_leaves_room_for() -> None:
    """The verifier adds a token of its own, so that a budget of b has room for b - 1 drafts."""
    assert [found("abcdefabc", budget) for budget in (1, 2, 3, 5, 6)] == [
        "",
        "d",
        "de",
        "defa",
        "defa",
    ]


def test_shorter_and_longer_ngrams() -> None:
    text = "zab1yab2xb3zab"
    assert found(text, max_ngram=3) == "1yab"
    assert found(text, max_ngram=2) == "2xb3"
    assert found(text, max_ngram=1) == "3zab"
    assert found("xb3zab", min_ngram=2) == ""
    assert found("xb3zab", min_ngram=1) == "3zab"
    assert found("abcde1abcde", max_ngram=5, min_ngram=5) == "1abc"
    assert found("bcde1abcde", max_ngram=5, min_ngram=5) == ""


def test_candidates_are_point_masses_without_calls() -> None:
    (proposal,) = proposals_of(NGram(2), context([1, 2, 1]))
    assert proposal.draw is Draw.DETERMINISTIC
    assert proposal.draft_probs is None
    assert proposal.num_draft_calls == 0


def by_search(text: Sequence[int], gamma: int, max_ngram: int, min_ngram: int) -> list[int]:
    """Look at every place, the latest first, for every n, the largest first."""
    for size in range(max_ngram, min_ngram - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if list(text[end - size : end]) == list(text[len(text) - size :]):
                return list(text[end : end + gamma])
    return []


@pytest.mark.parametrize("seed", range(12))
def test_a_growing_text_is_indexed_as_if_it_were_searched(seed: int) -> None:
    """Random texts of few letters, committed in blocks; asked now and then, sometimes twice."""
    rng = random.Random(seed)
    max_ngram = rng.randint(1, 4)
    gamma, min_ngram = rng.randint(1, 5), rng.randint(1, max_ngram)
    ngram = NGram(gamma, max_ngram, min_ngram)
    one = context([rng.randrange(3) for _ in range(rng.choice([1, 2, 20]))])
    ngram.open(1, PLENTY, 3)
    ngram.reset([one])
    for _ in range(60):
        for _ in range(rng.randint(1, 2)):
            candidate = draft_ids(ngram.propose([one])[0])
            assert candidate == by_search(one.token_ids, gamma, max_ngram, min_ngram)
        assert isinstance(one.token_ids, list)
        one.token_ids.extend(rng.randrange(3) for _ in range(rng.randint(1, 4)))


def test_requests_do_not_read_each_others_texts() -> None:
    first, second = context([1, 2, 3, 1, 2], row=0), context([1, 2, 9, 5], row=1)
    ngram = NGram(3)
    proposals = proposals_of(ngram, first, second)
    assert [draft_ids(proposal) for proposal in proposals] == [[3, 1, 2], []]
    assert isinstance(second.token_ids, list)
    second.token_ids.extend([1, 2])
    assert [draft_ids(p) for p in ngram.propose([second, first])] == [[9, 5, 1], [3, 1, 2]]


def test_a_new_request_forgets_the_row_s_last_one() -> None:
    ngram = NGram(3)
    proposals_of(ngram, context([1, 2, 3, 1, 2]))
    following = context([7, 1, 2])
    ngram.reset([following])
    assert draft_ids(ngram.propose([following])[0]) == []
    proposals_of(ngram, context([1, 2, 3, 1, 2]))
    (proposal,) = proposals_of(ngram, following)
    assert draft_ids(proposal) == [], "`open` must forget everything"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "gamma=0: expected an integer >= 1"),
        ({"gamma": 2.0}, "gamma=2.0: expected an integer >= 1"),
        ({"gamma": True}, "gamma=True: expected an integer >= 1"),
        ({"gamma": 2, "max_ngram": 0}, "max_ngram=0: expected an integer >= 1"),
        ({"gamma": 2, "min_ngram": 0}, "min_ngram=0: expected an integer >= 1"),
        ({"gamma": 2, "min_ngram": "1"}, "min_ngram='1': expected an integer >= 1"),
        (
            {"gamma": 2, "max_ngram": 2, "min_ngram": 3},
            "min_ngram=3: expected at most max_ngram=2",
        ),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        NGram(**options)
    assert str(caught.value) == message
