"""The longest suffix that occurred before: held against a search that looks at everything."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.core.values import Context
from specdec.proposer.automaton import SuffixAutomaton
from specdec.proposer.datastore import Datastore, write_datastore
from specdec.proposer.suffix import Suffix
from specdec.testing import check_proposer
from tests.support.asking import PLENTY, context, draft_ids, proposals_of


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def found(text: str, budget: int = PLENTY, **options: Any) -> str:
    """Return the chain for a text of letters."""
    (proposal,) = proposals_of(Suffix(**{"gamma": 4, **options}), context(letters(text), budget))
    return "".join(map(chr, draft_ids(proposal)))


@pytest.mark.parametrize(
    ("text", "candidate"),
    [
        ("abcdefabc", "defa"),
        ("ab1ab1ab2ab", "1ab2"),  # the most frequent goes first, not the latest
        ("ab1ab2ab", "2ab"),  # the latest of equally frequent ones
        ("cab1dab2dab2cab", "1dab"),  # three letters beat more frequent matches of two
        ("aaaa", "a"),
        ("ab", ""),
        ("a", ""),
    ],
)
def test_hand_examples(text: str, candidate: str) -> None:
    assert found(text) == candidate


def test_length_follows_the_match() -> None:
    """Two letters for each that was found, at most gamma, and never beyond the budget."""
    assert found("abcdefgbc", gamma=9, depth_per_matched=2) == "defg"
    assert found("abcdefgbc", gamma=3, depth_per_matched=2) == "def"
    assert found("abcdefgbc", gamma=9, depth_per_matched=0.5) == "d"
    assert found("abcdefgbc", budget=3, gamma=9) == "de"


def test_short_matches_may_be_too_short() -> None:
    assert found("abcdefgbc", min_matched=2) == "defg"
    assert found("abcdefgbc", min_matched=3) == ""


def test_the_match_is_said() -> None:
    (proposal,) = proposals_of(Suffix(4), context(letters("abcdefgbc")))
    assert proposal.matched == 2
    (proposal,) = proposals_of(Suffix(4), context(letters("abc")))
    assert proposal.matched is None


def test_a_tree_has_what_is_frequent_first_and_then_what_shorter_matches_know() -> None:
    """Behind "ab" 1 came twice and 2 once; behind "b" alone 3, too, which is the last to enter."""
    text = letters("ab1xab1yab2zcb3ab")
    (proposal,) = proposals_of(Suffix(1, num_nodes=3), context(text))
    assert proposal.tree.parents == (-1, 0, 0, 0)
    assert "".join(map(chr, proposal.tree.token_ids[1:])) == "123"
    (proposal,) = proposals_of(Suffix(2, num_nodes=3), context(text))
    assert "".join(map(chr, proposal.tree.token_ids[1:])) == "12y"  # 1/2 * 1/3, before z: 1/4 * 1/2
    assert proposal.tree.parents == (-1, 0, 0, 1)


Following = list[tuple[int, int]]  # tokens and how often, the most frequent first


def by_search(text: Sequence[int]) -> dict[int, Following]:
    """Return what follows each suffix that occurs earlier, by its length, by looking at all."""
    matches: dict[int, Following] = {}
    for length in range(1, len(text)):
        suffix = text[len(text) - length :]
        places = [p for p in range(len(text) - length) if text[p : p + length] == suffix]
        behind = [text[place + length] for place in places]
        latest = dict(zip(behind, places, strict=True))
        ranked = sorted(Counter(behind).items(), key=lambda each: (-each[1], -latest[each[0]]))
        if places:
            matches[length] = ranked
    return matches


@pytest.mark.parametrize("seed", range(40))
def test_the_automaton_equals_a_search(seed: int) -> None:
    """At every prefix of a text: the longest match, counts, and the order of what follows.

    Suffixes that end at the same places are one state, of which the longest is told.
    """
    rng = random.Random(seed)
    text = rng.choices(range(rng.randint(1, 4)), k=rng.randint(1, 30))
    automaton = SuffixAutomaton()
    for end in range(1, len(text) + 1):
        automaton.extend(text[end - 1 : end])
        expected = by_search(text[:end])
        matches = list(automaton.matches())
        assert max((each.length for each in matches), default=0) == max(expected, default=0)
        for match in matches:
            following = [(token, often) for token, often, _ in match.place.goes_on()]
            assert following == expected[match.length]


def test_a_token_takes_no_longer_behind_a_longer_text() -> None:
    """States and transitions stay below the known bounds, also where everything repeats."""
    for text in ([0] * 500, [0, 1] * 250, random.Random(0).choices(range(3), k=500)):
        automaton = SuffixAutomaton()
        automaton.extend(text)
        assert automaton.num_states <= 2 * len(text)


def corpus(folder: Path, *texts: str) -> Datastore:
    write_datastore([letters(text) for text in texts], folder, "none")
    return Datastore.open(str(folder), "path")


def test_the_longer_of_two_matches_counts(tmp_path: Path) -> None:
    """And the text's own where both are equally long."""
    others = corpus(tmp_path, "xabcQ", "zbR")
    assert found("abcdefgbc", corpus=others) == "defg"
    assert found("fabc1fbabc", corpus=others) == "1fba"
    assert found("1fbc1abc", corpus=others) == "Q"


def test_rows_and_requests_do_not_leak() -> None:
    suffix = Suffix(3)
    first, second = context([1, 2, 3, 1, 2]), context([1, 2, 9, 1, 2], row=1)
    proposals = proposals_of(suffix, first, second)
    assert [draft_ids(each) for each in proposals] == [[3, 1, 2], [9, 1, 2]]
    following: Context = context([7, 1, 2])
    suffix.reset([following])
    assert draft_ids(suffix.propose([following])[0]) == []


@pytest.mark.parametrize("nodes", [None, 5])
def test_it_keeps_its_protocol(nodes: int | None) -> None:
    check_proposer(lambda: Suffix(3, num_nodes=nodes))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"gamma": 0}, "gamma=0: expected an integer >= 1"),
        ({"gamma": 1, "min_matched": 0}, "min_matched=0: expected an integer >= 1"),
        ({"gamma": 1, "num_nodes": "2"}, "num_nodes='2': expected an integer >= 1"),
        ({"gamma": 1, "depth_per_matched": 0}, "depth_per_matched=0: expected a number"),
        ({"gamma": 1, "corpus_path": "nowhere"}, "corpus_path='nowhere': no datastore.json"),
        ({"gamma": 1, "corpus_path": 3}, "corpus_path=3: expected a datastore"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Suffix.load(**options)
