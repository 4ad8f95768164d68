"""The block head: how large it is, and which options it takes."""

from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.heads.block import BlockHead

SIZE = 384  # of which 8/3 is a whole number, and the heads of keys are half as many
SQUARES = {
    "one layer": ({"reads": ["final"]}, 12),
    "of three": ({"reads": [1, 3, 5]}, 14),
    "two layers": ({"reads": [1, 3, 5], "num_layers": 2}, 25),
}


@pytest.mark.parametrize("kind", SQUARES)
def test_it_has_as_many_weights_as_the_papers_say(kind: str) -> None:
    """In squares of the hidden size, without norms; embeddings and vocabulary are not its own."""
    options, squares = SQUARES[kind]
    head = BlockHead(SIZE, 61, correction="none", **options)
    matrices = [weight.numel() for weight in head.parameters() if weight.ndim > 1]
    assert sum(matrices) == squares * SIZE**2


def test_a_correction_has_two_matrices_of_its_rank() -> None:
    corrected, plain = (
        sum(weight.numel() for weight in BlockHead(32, 61, correction=name, rank=5).parameters())
        for name in ("markov", "none")
    )
    assert corrected - plain == 2 * 61 * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "both"}, "mask='both': expected one of causal, bidirectional"),
        ({"labels": "late"}, "labels='late': expected one of shifted, in_place"),
        ({"correction": "rnn"}, "correction='rnn': expected one of none, markov"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"rank": 0}, "rank=0"),
        ({"reads": [1, 0]}, "reads="),
        ({"num_attention_heads": 3}, "num_attention_heads=3: expected a divisor"),
        ({"intermediate_size": 0}, "intermediate_size=0"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_options_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        BlockHead(32, 61, **options)
