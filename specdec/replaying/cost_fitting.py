"""From the seconds of real steps to the curves of `Costs`.

The engine itself is run, with shapes chosen so that every curve gets its points: what is predicted
later is then made of what the same timers say, interpreter and all. Medians are taken, because a
machine that is shared stalls now and then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, nnls

from specdec.core.errors import UserError
from specdec.core.trace import Step
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Layer, Proposal, Verdict
from specdec.replaying.costs import LEAST_FACTOR, Costs, Curve, DraftCosts, ProposerKey

MIN_STEPS = 8  # whose median makes a point


class Filler:
    """Proposes tokens that are wrong, and of no cost, so that forwards of any size can be timed."""

    draw = Draw.DETERMINISTIC
    layers: Sequence[Layer] = ()

    def __init__(self, num_tokens: int, branches: bool):
        self._num_tokens = num_tokens
        self._branches = branches

    @property
    def max_depth(self) -> int:
        """A chain, or as many children of the root."""
        return min(1, self._num_tokens) if self._branches else self._num_tokens

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Nothing to prepare."""

    def reset(self, contexts: Sequence[Context]) -> None:
        """Nothing to forget."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Say the last token again and again: hardly ever right, and if so, of little harm."""
        trees = [self._tree(context.token_ids[-1]) for context in contexts]
        return [Proposal(tree, num_draft_calls=0) for tree in trees]

    def _tree(self, token: int) -> CandidateTree:
        repeated = (token,) * self._num_tokens
        if self._branches:
            return CandidateTree((token, *repeated), (-1, *(0,) * self._num_tokens))
        return CandidateTree.chain(token, repeated)

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn."""


@dataclass(frozen=True)
class Timed:
    """The steps of one arm that was run to be timed."""

    draft: ProposerKey | None  # None: a filler
    parents: tuple[int, ...]  # per level, as in `TreeShape`; of none: what does not grow trees
    choice: str
    steps: Sequence[Step]


def fitted(timed: Sequence[Timed], circumstances: Mapping[str, object]) -> Costs:
    """Fit all curves.

    Raises:
        UserError: too few steps were timed for any curve.
    """
    steps = [step for each in timed if each.draft is None for step in each.steps]
    chain = curve([(s.drafted + 1, s.verify_seconds) for s in steps if is_chain(s)])
    tree = curve([(s.drafted + 1, s.verify_seconds) for s in steps if not is_chain(s)])
    groups: dict[str, list[Timed]] = {}
    names: dict[str, str] = {}
    for each in timed:
        if each.draft is not None:
            groups.setdefault(each.draft.known_by, []).append(each)
            names.setdefault(each.draft.known_by, each.draft.name)
    drafts = {key: _draft(names[key], group, chain, tree) for key, group in groups.items()}
    return Costs(circumstances, chain, tree, drafts)


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
    smooth = isotonic_regression(medians, weights=[len(each) for each in often.values()]).x
    return Curve(tuple(often), tuple(float(each) for each in smooth))


def _draft(name: str, timed: Sequence[Timed], chain: Curve, tree: Curve) -> DraftCosts:
    """Fit what one proposer takes: its start and its levels, none of them below 0."""
    verify = _factor([step for each in timed for step in each.steps], chain, tree)
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
    return DraftCosts(name, float(found[0]), levels, verify, other)


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


def is_chain(step: Step) -> bool:
    """Whether a step's candidates, if any, hang one from another."""
    return step.drafted == step.depth


def _too_few(what: str) -> UserError:
    return UserError(f"max_new_tokens, prompts.limit: {what} {MIN_STEPS} times; expected more")


def _whole(timed: Timed) -> list[Step]:
    """Leave out steps that grew less, because little of the budget was left."""
    return [step for step in timed.steps if step.drafted and step.depth >= len(timed.parents)]


def _factor(steps: Sequence[Step], chain: Curve, tree: Curve) -> float:
    """Compare the verifier's forwards among a proposer's steps with those among idle ones."""
    shares: dict[tuple[bool, int], list[float]] = {}
    for step in steps:
        size, branches = step.drafted + 1, step.drafted != step.depth
        expected = (tree if branches else chain).at(size)
        if step.drafted:
            shares.setdefault((branches, size), []).append(step.verify_seconds / expected)
    often = [median(each) for each in shares.values() if len(each) >= MIN_STEPS]
    return max(LEAST_FACTOR, sum(often) / len(often)) if often else 1.0
