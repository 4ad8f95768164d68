"""Which forwards are timed: every number of tokens behind every context."""

from collections.abc import Sequence
from dataclasses import dataclass

from specdec.core.errors import require
from specdec.replaying.forwards import Shape


@dataclass(frozen=True)
class ForwardGrid:
    """What is timed.

    Args:
        tokens: that a row reads, as a chain and, from three on, as a tree.
        contexts: cached cells before them.
        batch: rows, B.
        repeats: how often.
    """

    tokens: Sequence[int]
    contexts: Sequence[int]
    batch: int
    repeats: int

    @property
    def shapes(self) -> list[Shape]:
        """All points of the grid."""
        return [
            Shape(branches, number, context)
            for context in self.contexts
            for branches in (False, True)
            for number in self.tokens
            if number > (2 if branches else 0)
        ]


def contexts_within(contexts: Sequence[int], tokens: Sequence[int], max_length: int) -> list[int]:
    """Cut contexts off where a model's own one has no room for the tokens behind them.

    Raises:
        UserError: there is none at all.
    """
    room = max_length - max(tokens)
    fewer = f"fewer than the {max_length} that the model reads"
    require(room >= 1, "tokens", max(tokens), fewer)
    return sorted({min(context, room) for context in contexts})
