"""A text that a tiny model learns in a few steps, and what builds the objective on it."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Build = Callable[..., Any]  # an objective, of the kind that is asked for
LEARNT = "the cat sat on the mat and the dog sat on the log. " * 60
HELD_OUT = "the dog sat on the mat and the cat sat on the log. " * 8


class Preparable(Protocol):
    """What reads its data after it was made."""

    def prepare(self) -> None: ...


PreparedT = TypeVar("PreparedT", bound=Preparable)


def prepared(made: PreparedT) -> PreparedT:
    """Let it do its work."""
    made.prepare()
    return made
