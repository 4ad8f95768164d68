"""A growing text in another model's tokens: the same text, encoded a little at a time."""

import random
from collections.abc import Sequence

import pytest

from specdec.lm import respelled as module
from specdec.lm.respelled import Respelled
from specdec.lm.token_bytes import TokenBytes, spelling_of
from specdec.lm.translation import Translation
from tests.lm.test_token_bytes import random_text
from tests.support.small_tokenizers import KINDS, TEXT, byte_level, metaspace

EXACT = ["byte level", "metaspace", "metaspace without a space before"]
PAIRS = [(read, write) for read in EXACT for write in (*EXACT, "other words")]


def spelling(kind: str) -> TokenBytes:
    return spelling_of(byte_level(300, reverse=True) if kind == "other words" else KINDS[kind]())


def grown(read: TokenBytes, write: TokenBytes, token_ids: Sequence[int], seed: int) -> Respelled:
    """Let a text grow a few tokens at a time."""
    found = Translation("strings", read, write).reading()
    chosen, place = random.Random(seed), 0
    while place < len(token_ids):
        place += chosen.randrange(1, 5)
        found.follow(token_ids[:place])
    return found


@pytest.mark.parametrize(("read", "write"), PAIRS)
def test_the_same_text_however_it_grew(read: str, write: str) -> None:
    """Emoji in pieces, runs of spaces and new lines included."""
    one, other = spelling(read), spelling(write)
    for seed in range(40):
        text = "def " + random_text(seed, 60)
        token_ids, _ = one.encode(text)
        found = grown(one, other, token_ids, seed)
        said = other.said(found.token_ids).decode()
        assert said.removeprefix(" ") == text
        assert not found.unfinished


@pytest.mark.parametrize("write", EXACT)
def test_ordinary_text_gets_the_tokens_that_its_tokenizer_gives_it(write: str) -> None:
    """The look-back: a word that goes on becomes the token that it would have been."""
    one, other = spelling("other words"), spelling(write)
    token_ids, _ = one.encode(TEXT * 2)
    assert grown(one, other, token_ids, 0).token_ids == other.encode(TEXT * 2)[0]


def test_a_step_encodes_a_window_and_never_the_whole_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = spelling("other words"), spelling("byte level")
    token_ids, _ = one.encode(TEXT * 8)
    found = Translation("strings", one, other).reading()
    found.follow(token_ids[:-40])
    lengths: list[int] = []
    encode = TokenBytes.encode

    def counted(self: TokenBytes, text: str) -> tuple[list[int], list[int]]:
        lengths.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(TokenBytes, "encode", counted)
    before = list(found.token_ids)
    for place in range(len(token_ids) - 40, len(token_ids), 2):
        found.follow(token_ids[:place])
    longest = max(len(said) for said in other.spelt.values())
    assert len(lengths) > 10
    assert max(lengths) <= (module.WINDOW + 4) * longest < len(TEXT) * 4
    kept = len(before) - module.WINDOW
    assert found.token_ids[:kept] == before[:kept], "what was read is not read again"


@pytest.mark.parametrize("write", EXACT)
def test_a_character_whose_bytes_come_one_by_one(write: str) -> None:
    """Its bytes stand there until it is whole, where there are tokens for them."""
    one, other = spelling("other words"), spelling(write)
    token_ids, _ = one.encode("a\U0001f389b")
    found = Translation("strings", one, other).reading()
    assert len(token_ids) == 6, "the example wants a token for each byte"
    for count in range(1, 7):
        found.follow(token_ids[:count])
        so_far = "a\U0001f389b".encode()[:count]
        assert other.said(found.token_ids).removeprefix(b" ") == so_far
        assert found.unfinished == (so_far[1:] if count < 5 else b"")


def test_bytes_that_are_no_character_are_replaced_and_the_text_goes_on() -> None:
    one, other = spelling("other words"), spelling("metaspace")
    broken = [one.byte_ids[0xF0], one.byte_ids[0x9F], *one.encode("then text")[0]]
    found = grown(one, other, broken, 3)
    assert other.said(found.token_ids).decode().endswith("then text")


def test_special_tokens_have_their_own_or_are_written() -> None:
    one, other = spelling("metaspace"), spelling("byte level")
    begin, end = one.begin_id, one.end_id
    assert begin is not None
    assert end is not None
    text, _ = one.encode("The end")
    found = Translation("strings", one, other).reading().follow([begin, *text, end, *text])
    middle = list(found).index(0)
    assert other.end_id == 0
    assert other.said(found[:middle]) == b"The end"
    assert other.said(found[middle + 1 :]).strip() == b"The end"
    unknown = Translation("strings", spelling_of(byte_level(end="<eos>")), other)
    strange = Respelled(unknown.verifier, other, {})
    assert other.said(strange.follow([0])) == b"<eos>", "what it has no token of is read as it is"


def test_a_draft_s_own_first_token_comes_first() -> None:
    tokenizer = metaspace()
    template = tokenizer.backend_tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    copy = type(template).from_str(template.to_str())
    copy.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    own = PreTrainedTokenizerFast(tokenizer_object=copy, bos_token="<s>", eos_token="</s>")
    write, read = spelling_of(own), spelling("metaspace")
    assert write.prefix == (1,)
    text, _ = read.encode("The end")
    for prompt in ([1, *text], text):  # once, whether the verifier has one or not
        assert list(Translation("strings", read, write).reading().follow(prompt)) == [1, *text]
