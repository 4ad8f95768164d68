"""The head of EAGLE and MTP: how large it is, and which layers it takes."""

from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.heads.eagle import EagleHead

SIZE = 384  # of which 8/3 is a whole number, and the heads of keys are half as many
SQUARES = {
    "eagle3": ({"reads": [1, 3, 5]}, 16),
    "one layer": ({"reads": ["final"]}, 13),
    "mtp": ({"reads": ["final"], "fusion": "project"}, 13),
}


@pytest.mark.parametrize("kind", SQUARES)
def test_it_has_as_many_weights_as_the_papers_say(kind: str) -> None:
    """In squares of the hidden size, without norms; embeddings and vocabulary are not its own."""
    options, squares = SQUARES[kind]
    head = EagleHead(SIZE, 61, **options)
    matrices = [weight.numel() for weight in head.parameters() if weight.ndim > 1]
    assert sum(matrices) == squares * SIZE**2


@pytest.mark.parametrize(
    "reads", [[], [1, 0], [0, 0], ["final", 0], [-1], ["last"], [True], "final"], ids=str
)
def test_what_is_no_list_of_layers_is_refused(reads: Any) -> None:
    with pytest.raises(UserError, match=r"^reads="):
        EagleHead(32, 61, reads=reads)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"steps": 0}, r"^steps=0"),
        ({"fusion": "add"}, r"^fusion='add': expected one of concat, project"),
        ({"num_attention_heads": 3}, r"^num_attention_heads=3: expected a divisor"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, r"^num_key_value_heads=3"),
        ({"intermediate_size": 0}, r"^intermediate_size=0"),
        ({"norm_output": 1}, r"^norm_output=1"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        EagleHead(32, 61, **options)
