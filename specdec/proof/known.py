"""What is enumerated once is remembered: rules of one class with equal attributes are alike."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from specdec.core.protocols import VerificationRule
from specdec.core.values import Draw

FoundT = TypeVar("FoundT")
Find = Callable[[VerificationRule, Draw | None], FoundT]


@dataclass(frozen=True)
class _Known:
    """A rule for one draw."""

    kind: type
    state: bytes
    draw: Draw | None
    rule: VerificationRule = field(compare=False)


def remembering(find: Find[FoundT]) -> Find[FoundT]:
    """Ask `find` only once for each rule and draw."""

    @lru_cache(maxsize=1024)
    def found(known: _Known) -> FoundT:
        return find(known.rule, known.draw)

    def ask(rule: VerificationRule, draw: Draw | None) -> FoundT:
        try:
            state = pickle.dumps(vars(rule))
        except (TypeError, AttributeError, pickle.PicklingError):  # who knows what it depends on
            return find(rule, draw)
        return found(_Known(type(rule), state, draw, rule))

    return ask
