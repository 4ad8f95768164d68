"""Where texts end: stop strings as they are seen, whatever tokens they are made of."""

from collections.abc import Callable, Sequence

import pytest
import torch

from specdec.core.escapes import unescaped
from specdec.core.protocols import TreePolicy
from specdec.core.tree import CandidateTree
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.proposer.draft_model import DraftModel
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from tests.support.arms import decoder
from tests.support.toy import Tokens, table_lm

Show = Callable[[Sequence[int]], str]


def of_bytes(ids: Sequence[int]) -> str:
    """A token is a byte, as in byte-level vocabularies."""
    return bytes(ids).decode("utf-8", errors="replace")


def without_leading_space(ids: Sequence[int]) -> str:
    """As tokenizers that put a space before each word, and drop it where a text begins."""
    return of_bytes(ids).removeprefix(" ")


def silent(ids: Sequence[int]) -> str:
    """Tokens above 200 show as nothing."""
    return of_bytes([each for each in ids if each <= 200])


def in_long_tokens(ids: Sequence[int]) -> str:
    return "".join(f"{each % 10}{'x' * 40}" for each in ids)


def with_a_long_one(ids: Sequence[int]) -> str:
    """Token 200 shows as itself and more, those above it as nothing."""
    return "".join("b" + "x" * 40 if each == 200 else silent([each]) for each in ids)


@pytest.mark.parametrize(
    ("stop", "show", "output_ids"),
    [
        ("end", of_bytes, b"this is the end"),
        ("\u00e9" * 12, of_bytes, b"so: " + "\u00e9".encode() * 12),
        ("\u00e9" * 30, of_bytes, b"so: " + "\u00e9".encode() * 30),
        (" a", without_leading_space, b"b a"),
        (" abcdefghijklmno", without_leading_space, b"so it is abcdefghijklmno"),
        ("ab", silent, b"a" + bytes([201] * 50) + b"b"),
        ("ab", with_a_long_one, b"a" + bytes([201] * 30) + bytes([200])),
        ("x" * 40 + "7", in_long_tokens, (3, 4, 7)),
    ],
)
def test_a_stop_string_is_seen_with_the_token_that_completes_it(
    stop: str, show: Show, output_ids: Sequence[int]
) -> None:
    stopping = Stopping(400, stop_strings=("no", stop), show=show)
    for text in (list(output_ids), [*b"a text before: ", *output_ids, *b" and on"]):
        first = next(n for n in range(len(text) + 1) if stop in show(text[:n]))
        assert stopping.cut((), text) == (text[:first], "stop")
        for num_before in range(1, first):
            emitted, reason = stopping.cut(text[:num_before], text[num_before:])
            assert (text[:num_before] + emitted, reason) == (text[:first], "stop")


def test_special_tokens_are_seen_by_stop_strings_and_left_out_of_the_text() -> None:
    def show(ids: Sequence[int]) -> str:
        return "".join("<end>" if each == 255 else chr(each) for each in ids)

    def decode(ids: Sequence[int]) -> str:
        return "".join(chr(each) for each in ids if each != 255)

    stopping = Stopping(9, stop_strings=("<end>",), decode=decode, show=show)
    assert stopping.cut((), [65, 66, 255, 67]) == ([65, 66, 255], "stop")


def counting(tokens: Tokens) -> torch.Tensor:
    return torch.eye(4, dtype=torch.float64)[(tokens[-1] + 1) % 4]


@pytest.mark.parametrize("tree", [Chain(8), Dynamic(8, 8)], ids=["chain", "tree"])
def test_what_stands_behind_a_stop_string_is_not_submitted(tree: TreePolicy) -> None:
    """It could never be emitted; a draft that is right all the time has a rate of 1."""
    stopping = Stopping(20, stop_strings=("12",), show=lambda ids: "".join(map(str, ids)))
    draft = DraftModel(table_lm(counting, 4), tree)
    speculative = decoder(draft, verifier=table_lm(counting, 4), stopping=stopping)
    (trace,) = speculative.decode([Request("a", (3,))])
    assert trace.output_ids == (0, 1, 2)
    (step,) = trace.steps
    assert (step.accepted, step.emitted) == (3, 3)
    assert step.drafted == 3 or isinstance(tree, Dynamic)
    assert trace.finish_reason == "stop"


def test_nodes_below_the_end_go_and_their_siblings_stay() -> None:
    tree = CandidateTree((9, 1, 2, 2, 3, 2), (-1, 0, 0, 1, 3, 2))
    kept = tree.pruned(9, frozenset(), frozenset({3}))
    assert kept == (CandidateTree((9, 1, 2, 2, 2), (-1, 0, 0, 1, 2)), [0, 1, 2, 3, 5])


def test_escapes_are_what_was_meant() -> None:
    assert unescaped(r"a\nb\t\r\\n\d") == "a\nb\t\r\\n\\d"
    assert unescaped("a\n") == "a\n"
