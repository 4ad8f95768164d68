"""Which tokens two vocabularies have in common, by the bytes that they spell; refusals."""

import random

import pytest

from specdec.core.errors import UserError
from specdec.lm.token_bytes import spelling_of
from specdec.lm.translation import Translation, translated
from tests.lm.test_token_bytes import random_text
from tests.support.small_tokenizers import KINDS, byte_level, letters, metaspace, wordpiece

OTHERS = {"other words": lambda: byte_level(300, "<eos>", True), **KINDS}
PAIRS = [(one, other) for one in OTHERS for other in OTHERS if one != other]


def between(one: str, other: str, kind: str = "intersection") -> Translation:
    return Translation(kind, spelling_of(OTHERS[one]()), spelling_of(OTHERS[other]()))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_common_tokens_spell_the_same_bytes_one_for_one(one: str, other: str) -> None:
    found = between(one, other)
    assert len(set(found.pairs.values())) == len(found.pairs)
    ours, theirs = found.draft.spelt, found.verifier.spelt
    for token, draft in found.pairs.items():
        if token in found.twins:
            assert draft in found.draft.specials
            assert token in found.verifier.specials
        else:
            assert theirs[token] == ours[draft] != b""
    both = (set(theirs.values()) & set(ours.values())) - {b""}
    assert len(found.pairs) - len(found.twins) == len(both), "none that both have is missing"


def test_a_space_is_the_same_however_it_is_written() -> None:
    found = between("byte level", "metaspace")
    spelt = {found.verifier.spelt.get(token) for token in found.pairs}
    assert any(said and said.startswith(b" ") and len(said) > 2 for said in spelt)
    assert {bytes([byte]) for byte in range(256)} <= spelt, "the bytes of its fallback"
    assert any(said == b" the" for said in map(between("byte level", "wordpiece").draft.spelt.get,
               between("byte level", "wordpiece").pairs.values()))  # fmt: skip


def test_a_piece_stands_before_a_byte_that_spells_the_same() -> None:
    tokenizer = metaspace()
    found = between("byte level", "metaspace")
    (theirs,) = [token for token, said in found.verifier.spelt.items() if said == b"e"]
    assert tokenizer.convert_ids_to_tokens(found.pairs[theirs]) == "e"


def test_ends_of_texts_are_the_same_whatever_they_are_called() -> None:
    found = between("byte level", "metaspace")
    assert found.twins == {0: found.draft.end_id}
    assert found.pairs[0] == found.draft.end_id
    assert found.draft.begin_id not in found.pairs.values()


@pytest.mark.parametrize(("one", "other"), [p for p in PAIRS if "wordpiece" not in p])
def test_what_is_drafted_is_spelt_by_the_verifier_exactly(one: str, other: str) -> None:
    """Also behind half a word, half a character, and with half a character at its end."""
    found = between(one, other, "strings")
    for seed in range(60):
        chosen = random.Random(seed)
        text = f"def {random_text(seed)}naive \U0001f389{random_text(seed + 1)}"
        tokens, _ = found.verifier.encode(text)
        cut = chosen.randrange(1, len(tokens))
        reading = found.reading()
        reading.follow(tokens[:cut])
        rest = found.verifier.said(tokens[cut:])
        said = rest[: chosen.randrange(len(rest) + 1)]
        expected = said
        while True:  # what is a whole character at the end
            try:
                (reading.unfinished + expected).decode()
                break
            except UnicodeDecodeError:
                expected = expected[:-1]
            if not expected:
                break
        ids = found.behind(reading, said)
        if expected or not reading.unfinished:
            assert ids is not None
            assert found.verifier.said(ids) == expected


def test_nothing_goes_on_a_character_that_stays_unfinished() -> None:
    found = between("other words", "byte level", "strings")
    reading = found.reading()
    reading.follow(found.verifier.encode("a\U0001f389")[0][:-1])
    assert found.behind(reading, b"") is None
    assert found.behind(reading, "\U0001f389".encode()[-1:]) is not None


def complaint(kind: str, verifier: object, draft: object) -> str:
    with pytest.raises(UserError) as caught:
        translated(kind, verifier, draft, "draft.path='x'", "draft.vocabulary")  # pyright: ignore
    return str(caught.value)


def test_vocabularies_with_nothing_in_common_are_refused() -> None:
    said = complaint("intersection", byte_level(), letters(["\u03b1", "\u03b2"]))
    assert said == (
        "draft.path='x': 0 of its 2 tokens are among the verifier's 319, too few for"
        " draft.vocabulary=intersection; expected draft.vocabulary=strings, or another draft"
    )


def test_text_that_does_not_come_back_is_refused_for_strings_and_not_for_common_tokens() -> None:
    for pair in ((byte_level(), wordpiece()), (wordpiece(), byte_level())):
        said = complaint("strings", *pair)
        assert "needs tokenizers that give text back as it was" in said
        assert "the fox" in said
        assert "expected draft.vocabulary=intersection" in said
        assert translated("intersection", *pair, "x").pairs


def test_a_tokenizer_that_is_unknown_is_refused() -> None:
    said = complaint("strings", byte_level(), object())
    assert said.startswith("draft.path='x': of the draft, object is not of the library tokenizers")
