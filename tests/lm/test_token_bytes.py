"""What tokens spell: the bytes that a tokenizer's own decoder makes of them."""

import random
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.lm.token_bytes import PROBE, spelling_of
from tests.support.small_tokenizers import KINDS, TEXT, byte_level, metaspace, wordpiece

LETTERS = [*"abeT1.,;'_(", " ", "  ", "\n", "\u00e9", "\u4e2d", "\U0001f389", "the ", "self"]


def random_text(seed: int, length: int = 30) -> str:
    chosen = random.Random(seed)
    return "".join(chosen.choice(LETTERS) for _ in range(chosen.randrange(1, length)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_a_text_spells_what_is_decoded(kind: str) -> None:
    tokenizer = KINDS[kind]()
    spelling = spelling_of(tokenizer)
    for seed in range(150):
        token_ids, ends = spelling.encode(random_text(seed))
        assert ends == sorted(ends)
        assert len(ends) == len(token_ids)
        ours = spelling.said(token_ids).decode()
        theirs = tokenizer.decode(token_ids, skip_special_tokens=True)
        added = " " if spelling.adds_space else ""
        assert ours.removeprefix(added) == theirs.removeprefix(added if kind == "wordpiece" else "")


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "wordpiece"])
def test_text_comes_back_and_tokens_end_where_they_are_said_to(kind: str) -> None:
    spelling = spelling_of(KINDS[kind]())
    assert spelling.returns(PROBE)
    for seed in range(150):
        text = random_text(seed)
        assert spelling.returns(text)
        token_ids, ends = spelling.encode(text)
        for place, (end, after) in enumerate(zip(ends, [*ends[1:], None], strict=True)):
            if end != after:  # of a character of several tokens the last one ends it
                said = spelling.said(token_ids[: place + 1]).decode()
                assert said in (text[:end], f" {text[:end]}" if spelling.adds_space else "")


def test_lower_case_does_not_come_back() -> None:
    assert not spelling_of(wordpiece()).returns(PROBE)


def test_prefixes_and_spaces_of_each_kind() -> None:
    assert spelling_of(metaspace()).adds_space
    assert not spelling_of(metaspace(prepend=False)).adds_space
    assert not spelling_of(byte_level()).adds_space
    assert spelling_of(byte_level()).prefix == ()


def test_special_tokens_spell_nothing_and_text_that_looks_like_one_is_text() -> None:
    spelling = spelling_of(byte_level())
    assert spelling.specials == {0: "<|endoftext|>"}
    assert 0 not in spelling.spelt
    token_ids, _ = spelling.encode("a<|endoftext|>")
    assert spelling.said(token_ids) == b"a<|endoftext|>"


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "wordpiece"])
def test_a_text_behind_another_is_spelt_exactly(kind: str) -> None:
    spelling, words = spelling_of(KINDS[kind]()), TEXT.split(" ")
    for seed in range(60):
        chosen = random.Random(seed)
        before = " ".join(words[: chosen.randrange(1, 9)])
        for text in (random_text(seed), "ory", " story", "\n    x"):
            found = spelling.encode_behind(before, text)
            assert found is not None
            assert spelling.said(found) == text.encode()


def test_a_token_that_reaches_into_the_text_before_is_none_of_the_text() -> None:
    spelling = spelling_of(byte_level())
    word = max(spelling.spelt.values(), key=len).decode()
    assert len(spelling.encode(word)[0]) == 1, "the example wants a word of one token"
    found = spelling.encode_behind(f"a{word[:2]}", word[2:])
    assert found is not None
    assert spelling.said(found) == word[2:].encode()


def test_a_tokenizer_of_no_such_library_is_refused() -> None:
    class Strange:
        pass

    strange: Any = Strange()
    with pytest.raises(UserError, match="Strange is not of the library tokenizers"):
        spelling_of(strange)
