"""Which tokens end a text at each place, against looking at the text with each token behind it."""

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import AutoTokenizer

from specdec.decoding.stopping import Stopping
from specdec.recording.texts import Text
from specdec.replaying.stops import Stops
from tests.support.running import Tiny

Show = Callable[[Sequence[int]], str]


def of_bytes(ids: Sequence[int]) -> str:
    """A token is a byte, as in byte-level vocabularies."""
    return bytes(ids).decode("utf-8", errors="replace")


def without_leading_space(ids: Sequence[int]) -> str:
    """As tokenizers that put a space before each word, and drop it where a text begins."""
    return of_bytes(ids).removeprefix(" ")


def with_words(ids: Sequence[int]) -> str:
    """Some tokens are several characters, some show as nothing."""
    return "".join("" if each > 250 else f"{chr(each % 5 + 97)}" * (each % 3 + 1) for each in ids)


def brute_force(stopping: Stopping, text: Text, vocab_size: int) -> torch.Tensor:  # [T, V]
    rows = [
        [
            stopping.cut(text.output_ids[:place], [token])[1] is not None
            for token in range(vocab_size)
        ]
        for place in range(len(text.output_ids))
    ]
    return torch.tensor(rows)


def text_of(output_ids: Sequence[int], stopping: Stopping) -> Text:
    """Return the text up to where it ends."""
    written, _ = stopping.cut((), output_ids)
    return Text("a", "", 0, (1,), tuple(written), (), "length", 99)


@pytest.mark.parametrize(
    ("show", "strings", "output_ids"),
    [
        (of_bytes, ("end", "d.", "\n\n"), b"an en, the ed\n, the en"),
        (
            of_bytes,
            ("\u00e9", "x\u00e9y", "\u20ac ", "\u20ad"),
            "x\u00e8x, \u20ac, x\u00e8".encode(),
        ),
        (of_bytes, ("\ufffd",), b"a\xc3"),
        (without_leading_space, (" a", ":  "), b"b,a: b"),
        (without_leading_space, (" ",), b"b,a"),
        (with_words, ("aab", "bbbb", "cdd"), (0, 251, 5, 3, 1, 255, 2, 251, 9)),
    ],
)
def test_every_token_that_would_end_a_text_is_found(
    show: Show, strings: tuple[str, ...], output_ids: Sequence[int]
) -> None:
    stopping = Stopping(99, frozenset({77}), strings, show=show)
    first, second = text_of(output_ids, stopping), text_of(output_ids[:3], stopping)
    found = Stops(stopping, 256).behind([first, second], torch.device("cpu"))
    wanted = brute_force(stopping, first, 256)
    assert found[0].equal(wanted)
    assert found[1, :3].equal(wanted[:3])
    assert 0 < wanted.sum() < wanted.numel()


def test_tokens_of_a_checkpoint_are_read_as_it_spells_them(tiny: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.verifier))
    stopping = Stopping(99, stop_strings=("return", "\n    ", "r("), show=tokenizer.decode)
    text = text_of(tokenizer("def add(a, b):\n  re = \nfor i")["input_ids"], stopping)
    vocab_size = len(tokenizer)
    (found,) = Stops(stopping, vocab_size).behind([text], torch.device("cpu"))
    assert found.equal(brute_force(stopping, text, vocab_size))
    assert found.any(dim=1).sum() > 3
    assert len(text.output_ids) > 8


def test_end_tokens_alone_are_the_same_everywhere() -> None:
    stops = Stops(Stopping(99, frozenset({2, 9})), 5)  # 9 is beyond the vocabulary
    found = stops.behind([text_of((1, 1), Stopping())], torch.device("cpu"))
    assert found.tolist() == [[[False, False, True, False, False]]]


@pytest.mark.parametrize(
    ("reason", "end_ids", "strings", "is_known"),
    [
        ("length", frozenset[int](), (), True),
        ("eos", frozenset[int](), (), False),
        ("eos", frozenset[int](), ("a",), False),
        ("stop", frozenset({1}), (), False),
        ("stop", frozenset({1}), ("a",), True),
    ],
)
def test_what_ended_a_text_must_be_known(
    reason: str, end_ids: frozenset[int], strings: tuple[str, ...], is_known: bool
) -> None:
    stopping = Stopping(9, end_ids, strings, show=of_bytes)
    text = Text("a", "", 0, (1,), (2,), (), reason, 9)
    assert (Stops.of([text], stopping, 256) is not None) == is_known
