"""Each token of a text is explained by what stood in its place."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace
from specdec.report.page.token_texts import packed_token
from specdec.results.token_view import PRINTABLE, Spelling, spelt_out, token_view

# Node 1 (10) has children 3 (20) and 4 (21); node 2 (11) has none; 5 (10) is drawn twice.
TREE = ((0, 10), (0, 11), (1, 20), (1, 21), (0, 10))


def make_step(
    accepted: int, emitted: int, outcome: Outcome, candidates: tuple[tuple[int, int], ...] = TREE
) -> Step:
    return Step(5, 2, accepted, emitted, outcome, (), 1, candidates=candidates)


def words(token_ids: Sequence[int]) -> str:
    return "".join(f"<{token}>" for token in token_ids)


def rows(*steps: Step, output_ids: tuple[int, ...]) -> list[tuple[str, str, int, tuple[str, ...]]]:
    trace = Trace("p", "any", 0, 3, output_ids, "text", "length", 0.0, steps)
    view = token_view(trace, "the prompt", words, str)
    assert (view["prompt_id"], view["turn"], view["prompt"]) == ("p", 0, "the prompt")
    return [(t["text"], t["kind"], t["depth"], t["rejected"]) for t in view["tokens"]]


def test_accepted_tokens_show_their_siblings() -> None:
    assert rows(make_step(2, 3, Outcome.BONUS), output_ids=(10, 21, 7)) == [
        ("<10>", "accepted", 1, ("<11>",)),
        ("<21>", "accepted", 2, ("<20>",)),
        ("<7>", "bonus", 3, ()),
    ]


def test_the_verifiers_token_shows_all_that_it_replaces() -> None:
    assert rows(make_step(0, 1, Outcome.RECOVERED), output_ids=(7,)) == [
        ("<7>", "recovered", 1, ("<10>", "<11>"))
    ]
    assert rows(make_step(1, 2, Outcome.RECOVERED), output_ids=(10, 7)) == [
        ("<10>", "accepted", 1, ("<11>",)),
        ("<7>", "recovered", 2, ("<20>", "<21>")),
    ]


def test_a_text_that_ends_within_the_candidates_has_no_token_of_the_verifiers() -> None:
    assert rows(make_step(1, 1, Outcome.ENDED), output_ids=(11,)) == [
        ("<11>", "accepted", 1, ("<10>",))
    ]


def test_steps_follow_each_other() -> None:
    steps = make_step(0, 1, Outcome.BONUS, candidates=()), make_step(1, 2, Outcome.RECOVERED)
    found = rows(*steps, output_ids=(5, 11, 6))
    assert [(text, kind, depth) for text, kind, depth, _ in found] == [
        ("<5>", "bonus", 1),
        ("<11>", "accepted", 1),
        ("<6>", "recovered", 2),
    ]


def test_candidates_survive_the_file() -> None:
    steps = (make_step(2, 3, Outcome.BONUS), make_step(0, 1, Outcome.RECOVERED, candidates=()))
    trace = Trace("p", "any", 0, 3, (10, 21, 7, 8), "text", "length", 0.0, steps)
    row = trace.to_row()
    assert "candidates" not in row["steps"][1], "most steps have none, and need not say so"
    assert Trace.from_row(row) == trace


def of_bytes(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def piece(token_id: int) -> str:
    others = sorted(set(range(256)) - set(PRINTABLE))
    return chr(token_id) if token_id in PRINTABLE else chr(256 + others.index(token_id))


@pytest.mark.parametrize(
    "text", ["ab\U0001f642cd\u00e9!", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u6f22\u5b57"]
)
def test_a_character_of_several_tokens_is_shown_once(text: str) -> None:
    """Emoji and most scripts; whatever is cut off in the end is no character."""
    token_ids = text.encode()
    texts = Spelling(token_ids, of_bytes, piece).texts
    assert "".join(texts) == text
    assert len(texts) == len(token_ids)
    assert [each for each in texts if each] == list(text)
    cut = Spelling(token_ids[:-1], of_bytes, piece).texts
    assert "".join(cut) == of_bytes(token_ids[:-1])


def test_a_token_without_a_text_is_shown_with_its_bytes() -> None:
    """As candidates are; one that the vocabulary does not have, with its number."""
    token_ids = "a\u20ac".encode()
    spelling = Spelling(token_ids, of_bytes, piece)
    found = [spelling.part(place) for place in range(len(token_ids))]
    assert found == ["", r"\xe2", r"\x82", ""]
    step = Step(0, 0, 0, 1, Outcome.BONUS, (), 1, candidates=())
    trace = Trace("p", "any", 0, 3, (*token_ids,), "text", "length", 0.0, (step,) * 4)
    first, second, _, last = token_view(trace, "", of_bytes, lambda token: None)["tokens"]
    assert (second["text"], second["part"]) == ("", "<226>")
    assert last["text"] == "\u20ac"
    assert "part" not in first | last, "most tokens have none, and need not say so"
    packed = [packed_token(each) for each in (first, second)]
    assert packed == [["a", 2, 1], ["", 2, 1, [], "<226>"]]


def test_tokens_show_the_experts_that_read_them() -> None:
    """An accepted token was read in its step, the verifier's own as the root of the next one."""
    a, b, c = (((number, 7),) for number in range(3))  # of one layer
    first = replace(make_step(1, 2, Outcome.RECOVERED), routes=(a, b))  # a root, and token 10
    last = replace(make_step(0, 1, Outcome.BONUS, candidates=()), routes=(c,))
    trace = Trace("p", "any", 0, 3, (10, 7, 5), "text", "length", 0.0, (first, last))
    tokens = token_view(trace, "", words, str)["tokens"]
    assert [token.get("experts") for token in tokens] == [b, c, None], "nobody reads the last one"
    packed = [packed_token(token) for token in tokens]
    assert packed[0] == ["<10>", 0, 1, ["<11>"], "", [(1, 7)]]
    assert packed[2] == ["<5>", 2, 1]


def test_bytes_that_are_no_character_do_not_swallow_the_rest() -> None:
    token_ids = [*b"a", 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, *b"bc"]
    texts = Spelling(token_ids, of_bytes, piece).texts
    assert "".join(texts) == of_bytes(token_ids)
    assert texts[-1] == "c"


def test_candidates_complete_the_character_or_are_spelt_out() -> None:
    spelling = Spelling("\U0001f642".encode(), of_bytes, piece)
    assert spelling.instead(3, 0x83) == "\U0001f643"
    assert spelling.instead(1, 0x9F) == r"\x9f"
    assert spelt_out("<0xF0>") == "<0xF0>"
    assert spelt_out(piece(ord(" ")) + piece(0xF0)) == r" \xf0"


def test_words_keep_the_space_in_front_of_them() -> None:
    """Vocabularies of words drop it at the beginning of whatever is decoded."""
    vocabulary = ["\u2581the", "\u2581end"]

    def joined(token_ids: Sequence[int]) -> str:
        return "".join(vocabulary[t] for t in token_ids).replace("\u2581", " ").removeprefix(" ")

    assert Spelling([0, 1, 1], joined, vocabulary.__getitem__).texts == ["the", " end", " end"]
