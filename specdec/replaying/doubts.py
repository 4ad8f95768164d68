"""Seconds that cannot be true: what says that a machine was not quiet while it was measured."""

from collections.abc import Mapping, Sequence
from math import ceil, floor, sqrt
from statistics import median
from typing import NamedTuple

import numpy as np

from specdec.replaying.cost_fitting import Design, Timed, shares_of
from specdec.replaying.costs import LEAST_FACTOR, ProposerKey
from specdec.replaying.forwards import Forwards, Shape

# How much less a larger forward may take than a smaller one, beyond both intervals: kernels have
# steps of their own, some 5 % of it.
LEAST_SHARE = 0.9
NUM_RESAMPLES, SEED = 400, 20230228


class Middle(NamedTuple):
    """A median of seconds, and its 95 % interval by order statistics."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Middle":
        """Take the median."""
        ordered, number = sorted(seconds), len(seconds)
        reach = 0.98 * sqrt(number)
        low, high = max(0, floor(number / 2 - reach)), min(number - 1, ceil(number / 2 + reach))
        return cls(median(ordered), ordered[low], ordered[high])


def doubts(
    samples: Mapping[Shape, Sequence[float]], forwards: Forwards, timed: Sequence[Timed]
) -> list[str]:
    """Name every quantity that contradicts what forwards can take, beyond its interval.

    More tokens take no less time, and neither does more context; a proposer's forwards are not much
    cheaper than those in a row; and neither the start of a draft nor one of its levels takes less
    than nothing.
    """
    found = _falling({shape: Middle.of(each) for shape, each in samples.items()})
    groups: dict[ProposerKey, list[Timed]] = {}
    for each in timed:
        groups.setdefault(each.draft, []).append(each)
    for draft, own in groups.items():
        found += _too_cheap(draft.name, own, forwards)
        found += _below_nothing(draft.name, own)
    return found


def _falling(middles: Mapping[Shape, Middle]) -> list[str]:
    """Name the first chain, and the first tree, that takes less than a smaller one."""
    found: dict[bool, str] = {}
    for shape, middle in sorted(middles.items()):
        for smaller, theirs in sorted(middles.items()):
            less = middle.high < LEAST_SHARE * theirs.low
            if less and _is_within(smaller, shape):
                kind = "tree" if shape.branches else "chain"
                said = f"{_said(shape)} take less time than {_said(smaller)}"
                found.setdefault(shape.branches, f"verifier, {kind}: {said}")
    return list(found.values())


def _is_within(smaller: Shape, larger: Shape) -> bool:
    alike = smaller.branches == larger.branches
    return alike and smaller.num_tokens <= larger.num_tokens and smaller.context <= larger.context


def _said(shape: Shape) -> str:
    number = shape.num_tokens
    return f"{number} token{'s' if number != 1 else ''} behind {shape.context}"


def _too_cheap(name: str, timed: Sequence[Timed], forwards: Forwards) -> list[str]:
    """Hold a proposer's forwards to those in a row of the same size."""
    for (_, size), shares in shares_of(timed, forwards).items():
        if Middle.of(shares).high < LEAST_FACTOR:
            what = f"its forwards take less than {LEAST_FACTOR} of those in a row"
            return [f"{name}: verifier's factor: {what}, of {size} tokens"]
    return []


def _below_nothing(name: str, timed: Sequence[Timed]) -> list[str]:
    """Solve for start and levels without bounds, and see whether one is negative for sure."""
    design = Design.of(timed)
    if design is None:
        return []
    rng = np.random.default_rng(SEED)
    middles = [Middle.of([step.propose_seconds for step in steps]) for steps in design.steps]
    values = np.array([each.value for each in middles])
    deviations = np.array([(each.high - each.low) / 3.92 for each in middles])
    draws = values + deviations * rng.standard_normal((NUM_RESAMPLES, len(values)))
    found, *_ = np.linalg.lstsq(design.counts / values[:, None], (draws / values).T, rcond=None)
    least = (LEAST_SHARE - 1) * min(values)
    parts = ["start", *(f"a level, {choice}, below {n} nodes" for choice, n in design.levels)]
    for part, resamples in zip(parts, found, strict=True):
        if np.quantile(resamples, 0.975) < least:
            return [f"{name}: {part} takes less than nothing"]
    return []
