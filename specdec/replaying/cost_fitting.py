"""From the seconds of real steps to the curves of `Costs`.

The engine itself is run, with shapes chosen so that every curve gets its points: what is predicted
later is then made of what the same timers say, interpreter and all. Medians are taken, because a
machine that is shared stalls now and then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from specdec.core.errors import UserError
from specdec.core.trace import Step
from specdec.replaying.costs import LEAST_FACTOR, Costs, DraftCosts, ProposerKey
from specdec.replaying.curves import Curve, rising
from specdec.replaying.forwards import Forwards, Shape

MIN_STEPS = 8  # whose median makes a point


@dataclass(frozen=True)
class Timed:
    """The steps of one arm that was run to be timed."""

    draft: ProposerKey
    parents: tuple[int, ...]  # per level, as in `TreeShape`; of none: what does not grow trees
    choice: str
    steps: Sequence[Step]
    contexts: Sequence[int]  # cells that were cached when each step began


def fitted(
    forwards: Forwards,
    timed: Sequence[Timed],
    growths: Mapping[str, Curve],
    circumstances: Mapping[str, object],
) -> Costs:
    """Fit what proposers take.

    Args:
        forwards: of the verifier.
        timed: steps of all proposers, of plain decoding, too.
        growths: of proposers that have a model, by what they are known by; see `DraftCosts`.
        circumstances: of all of it.

    Raises:
        UserError: too few steps were timed for any curve.
    """
    groups: dict[ProposerKey, list[Timed]] = {}
    for each in timed:
        groups.setdefault(each.draft, []).append(each)
    drafts = {
        key.known_by: _draft(key.name, group, forwards, growths.get(key.known_by))
        for key, group in groups.items()
    }
    return Costs(circumstances, forwards, drafts)


def curve(pairs: Sequence[tuple[int, float]]) -> Curve:
    """Take the median of the seconds at each size that came up often enough.

    More is never less: what noise says against that is averaged out (isotonic regression).
    """
    found: dict[int, list[float]] = {}
    for size, seconds in pairs:
        found.setdefault(size, []).append(seconds)
    often = {size: each for size, each in sorted(found.items()) if len(each) >= MIN_STEPS}
    if not often:
        raise _too_few("no size was timed")
    medians = [median(each) for each in often.values()]
    return Curve(tuple(often), rising(medians, [len(each) for each in often.values()]))


def _draft(
    name: str, timed: Sequence[Timed], forwards: Forwards, growth: Curve | None
) -> DraftCosts:
    """Fit what one proposer takes: its start and its levels, none of them below 0."""
    verify = _factor(timed, forwards)
    other = curve([(s.drafted + 1, s.other_seconds) for each in timed for s in each.steps])
    design = Design.of(timed)
    if design is None:
        if any(each.parents for each in timed):
            raise _too_few("no tree was grown")
        return DraftCosts(name, 0.0, {}, verify, other)
    seconds = [median(step.propose_seconds for step in steps) for steps in design.steps]
    rows = design.counts / np.array(seconds)[:, None]  # all errors count by their share
    found, _ = nnls(rows, np.ones(len(rows)))
    levels: dict[str, Curve] = {}
    for choice in dict.fromkeys(choice for choice, _ in design.levels):
        points = {
            n: float(value)
            for (c, n), value in zip(design.levels, found[1:], strict=True)
            if c == choice
        }
        sizes = tuple(sorted(points))
        levels[choice] = Curve(sizes, tuple(points[size] for size in sizes))
    context = mean(context for each in timed for context in each.contexts)
    return DraftCosts(name, float(found[0]), levels, verify, other, growth, context)


@dataclass(frozen=True)
class Design:
    """Of what the seconds of a proposer's drafting are made: one start, and levels."""

    steps: Sequence[Sequence[Step]]  # of each of R kinds of steps that were timed often enough
    levels: Sequence[tuple[str, int]]  # how children are chosen, and below how many nodes: [L]
    counts: NDArray[np.float64]  # [R, 1 + L]: the start, then how many of each level

    @classmethod
    def of(cls, timed: Sequence[Timed]) -> "Design | None":
        """Count starts and levels; None where nothing was drafted often enough."""
        measured = [(each, full) for each in timed if len(full := _whole(each)) >= MIN_STEPS]
        if not measured:
            return None
        levels = list(dict.fromkeys((each.choice, n) for each, _ in measured for n in each.parents))
        counts = np.zeros((len(measured), 1 + len(levels)))
        counts[:, 0] = 1
        for row, (each, _) in zip(counts, measured, strict=True):
            for number in each.parents:
                row[1 + levels.index((each.choice, number))] += 1
        return cls([full for _, full in measured], levels, counts)


def shape_of(step: Step, context: int) -> Shape:
    """Return what the verifier read in a step."""
    return Shape(step.drafted != step.depth, step.drafted + 1, context)


def _too_few(what: str) -> UserError:
    return UserError(f"max_new_tokens, prompts.limit: {what} {MIN_STEPS} times; expected more")


def _whole(timed: Timed) -> list[Step]:
    """Leave out steps that grew less, because little of the budget was left."""
    return [step for step in timed.steps if step.drafted and step.depth >= len(timed.parents)]


def shares_of(timed: Sequence[Timed], forwards: Forwards) -> dict[tuple[bool, int], list[float]]:
    """Hold the verifier's forwards among steps to those in a row, by branches and tokens.

    Of a proposer count the steps that have candidates, and all steps of what never has any.
    """
    pairs = [pair for each in timed for pair in zip(each.steps, each.contexts, strict=True)]
    drafting = [pair for pair in pairs if pair[0].drafted] or pairs
    shares: dict[tuple[bool, int], list[float]] = {}
    for step, context in drafting:
        branches, number, _ = shape_of(step, context)
        surface = forwards.tree if branches else forwards.chain
        expected = surface.at(number, context)
        shares.setdefault((branches, number), []).append(step.verify_seconds / expected)
    return {key: each for key, each in shares.items() if len(each) >= MIN_STEPS}


def _factor(timed: Sequence[Timed], forwards: Forwards) -> float:
    middles = [median(each) for each in shares_of(timed, forwards).values()]
    return max(LEAST_FACTOR, mean(middles)) if middles else 1.0
