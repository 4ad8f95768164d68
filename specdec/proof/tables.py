"""Pairs of p and q over a few tokens, on which rules are enumerated when a run begins."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from specdec.proof.drafting import Conditional, Tokens


@dataclass(frozen=True)
class Table:
    """A verifier's and a draft's distribution; float32, as in decoding."""

    name: str
    p: Conditional
    q: Conditional

    def __str__(self) -> str:
        return self.name


def _conditional(row: Callable[[Tokens], list[float]]) -> Conditional:
    """Normalise the row after each text."""

    @cache
    def conditional(text: Tokens) -> Tensor:
        weights = torch.tensor(row(text), dtype=torch.float64)
        return (weights / weights.sum()).float()

    return conditional


def _varied(seed: int, vocab_size: int = 3) -> Callable[[Tokens], list[float]]:
    """Return other weights after every text, so that no row can be taken for another's."""

    def row(text: Tokens) -> list[float]:
        numbers = random.Random(f"{seed} {text}")
        return [float(numbers.randint(1, 9)) for _ in range(vocab_size)]

    return row


def _lacking(seed: int) -> Callable[[Tokens], list[float]]:
    """Take one token from each row, as top-k does: after another text it is another one."""

    def row(text: Tokens) -> list[float]:
        weights = _varied(seed)(text)
        weights[(sum(text) + len(text)) % len(weights)] = 0.0
        return weights

    return row


def _narrowing(seed: int, depth: int) -> Callable[[Tokens], list[float]]:
    """Leave one token from some depth on, so that deep trees have few outcomes."""

    def row(text: Tokens) -> list[float]:
        weights = _lacking(seed)(text)
        if len(text) < depth:
            return weights
        best = weights.index(max(weights))
        return [float(token == best) for token in range(len(weights))]

    return row


def _fixed(*weights: float) -> Conditional:
    return _conditional(lambda text: list(weights))


SOFT, OTHER = _conditional(_varied(1)), _conditional(_varied(2))
MIXED = Table("mixed", SOFT, OTHER)
LIKE = Table("like", SOFT, _conditional(lambda text: [4 * p + 1 for p in SOFT(text).tolist()]))
SPARSE = Table("q lacks tokens", SOFT, _conditional(_lacking(3)))
NARROW = Table("q lacks tokens, below of one", SOFT, _conditional(_narrowing(5, 1)))
BOTH_SPARSE = Table("p and q lack tokens", _conditional(_lacking(6)), _conditional(_lacking(7)))
WIDE = Table("four tokens", _conditional(_varied(8, 4)), _conditional(_varied(9, 4)))
# Of one token, where every draw costs little: the corners.
CORNERS = (
    MIXED,
    LIKE,
    SPARSE,
    BOTH_SPARSE,
    WIDE,
    Table("q = p", SOFT, SOFT),
    Table("disjoint", _fixed(2, 3, 0), _fixed(0, 0, 1)),
    Table("nearly disjoint", _fixed(0, 3, 7), _fixed(6, 4, 0)),
    Table("p of one token", _fixed(0, 1, 0), _fixed(2, 3, 5)),
    Table("q of one token", SOFT, _fixed(0, 1, 0)),
    Table("p and q of one token", _fixed(1, 0, 0), _fixed(1, 0, 0)),
    Table("p and q of one token each", _fixed(1, 0, 0), _fixed(0, 0, 1)),
    Table("p lacks a token", _fixed(1, 1, 0), OTHER),
    Table("ties", _fixed(1, 1, 2), _fixed(1, 2, 1)),
)
