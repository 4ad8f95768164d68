"""Seconds that cannot be true: what says that a machine was not quiet while it was measured."""

from collections.abc import Mapping, Sequence
from math import ceil, floor, sqrt
from statistics import median
from typing import NamedTuple

import numpy as np

from specdec.core.trace import Step
from specdec.replaying.cost_fitting import MIN_STEPS, Design, Timed, is_chain
from specdec.replaying.costs import LEAST_FACTOR

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


def doubts(timed: Sequence[Timed]) -> list[str]:
    """Name every quantity that contradicts what forwards can take, beyond its interval.

    More tokens take no less time; a proposer's forwards are not much cheaper than idle ones; and
    neither the start of a draft nor one of its levels takes less than nothing.
    """
    steps = [step for each in timed if each.draft is None for step in each.steps]
    chain, tree = _forwards(steps, True), _forwards(steps, False)
    found = [*_falling("chain", chain), *_falling("tree", tree)]
    for draft in dict.fromkeys(each.draft for each in timed if each.draft is not None):
        own = [each for each in timed if each.draft == draft]
        found += _too_cheap(draft.name, own, chain, tree)
        found += _below_nothing(draft.name, own)
    return found


def _forwards(steps: Sequence[Step], chains: bool) -> dict[int, Middle]:
    """Return the median of the verifier's seconds at each number of tokens."""
    groups: dict[int, list[float]] = {}
    for step in steps:
        if is_chain(step) == chains:
            groups.setdefault(step.drafted + 1, []).append(step.verify_seconds)
    often = {size: each for size, each in sorted(groups.items()) if len(each) >= MIN_STEPS}
    return {size: Middle.of(each) for size, each in often.items()}


def _falling(name: str, sizes: Mapping[int, Middle]) -> list[str]:
    """Name the first size that takes less than a smaller one."""
    for size, middle in sizes.items():
        for smaller in (each for each in sizes if each < size):
            if middle.high < LEAST_SHARE * sizes[smaller].low:
                return [f"verifier, {name}: {size} tokens take less time than {smaller}"]
    return []


def _too_cheap(
    name: str, timed: Sequence[Timed], chain: Mapping[int, Middle], tree: Mapping[int, Middle]
) -> list[str]:
    """Hold a proposer's forwards to idle ones of the same size."""
    steps = [step for each in timed for step in each.steps if step.drafted]
    for idle, own in ((chain, _forwards(steps, True)), (tree, _forwards(steps, False))):
        for size, middle in own.items():
            if size in idle and middle.high < LEAST_FACTOR * idle[size].low:
                what = f"its forwards take less than {LEAST_FACTOR} of idle ones"
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
