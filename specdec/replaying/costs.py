"""What the steps of decoding cost on some machine: measured once, good for every configuration.

A step drafts, level by level, lets the verifier read the candidates, and does the rest: the rule,
the commit, bookkeeping. Each of these is a curve over a size. Together with the steps that replay
expects they make the seconds that decoding would take, and so tokens per second (Leviathan et al.
2023, theorem 3.8, with measured curves in place of a constant cost ratio).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from specdec.core.errors import UserError
from specdec.core.protocols import TreePolicy
from specdec.core.trace import PlainSteps, Step, Trace
from specdec.core.values import Draw
from specdec.replaying.curves import Curve, Numbers
from specdec.replaying.forwards import Forwards
from specdec.tree.fixed import FixedTree

DRAWN, LIKELIEST = "drawn", "likeliest"  # how the children of a node are chosen: by chance or not
# Forwards among a proposer's steps over the same ones in a row: much less is a machine that changed
# meanwhile.
LEAST_FACTOR = 0.7
PLAIN = "none"  # what `Costs.drafts` calls steps without candidates


class Seconds(NamedTuple):
    """What one step of one request takes, by the engine's own timers (see `Step`)."""

    propose: float
    verify: float
    other: float


class ProposerKey(NamedTuple):
    """What candidates come from: what it is called, and what it is known by, wherever it lies."""

    name: str  # draft_model zoo:draft float32
    known_by: str


@dataclass(frozen=True)
class DraftCosts:
    """What one proposer takes."""

    name: str
    start: float  # of a step that drafts, however much
    level: Mapping[str, Curve]  # DRAWN or LIKELIEST: of one level, over the nodes above it
    # The verifier's forwards over those that were timed in a row: in between, caches are used for
    # other things, and hidden states may be asked for.
    verify: float
    other: Curve  # of the rest of a step, over the tokens that the verifier reads
    # A forward of one token of its model over the context: levels grow by as much. None: it has no
    # model, and nothing of it is taken to grow.
    growth: Curve | None = None
    context: float = 0.0  # behind which the levels were timed, on average

    def propose(self, shape: "TreeShape", contexts: Numbers) -> Numbers:  # [C] -> [C]
        """Predict the drafting of one step behind each of some contexts."""
        found = np.full(len(contexts), self.start)
        if shape.parents:
            # Where one kind of tree was not timed, the other is the better guess than nothing.
            level = self.level.get(shape.choice) or next(iter(self.level.values()))
            found += sum(level.at(number) for number in shape.parents)
        if self.growth is not None:
            longer = self.growth.along(contexts) - self.growth.at(self.context)
            found += len(shape.parents) * longer
        return np.maximum(0.0, found)


@dataclass(frozen=True)
class TreeShape:
    """What of a tree costs time."""

    num_tokens: int  # that the verifier reads: the draft tokens and the root
    branches: bool  # whether it is no chain
    parents: tuple[
        int, ...
    ]  # per level: the nodes of the level above that the draft is asked about
    choice: str = DRAWN

    @classmethod
    def of(
        cls, policy: TreePolicy | None, num_drafted: int, depth: int, levels: int | None = None
    ) -> "TreeShape":
        """Describe a step's candidates, `num_drafted` of them down to `depth`.

        `policy` grew them, in as many levels (None: `depth`) of which it may have kept fewer; no
        policy: they came all at once, or there are none.
        """
        levels = depth if levels is None else levels
        parents = () if policy is None else tuple(policy.parents[:levels])
        likeliest = policy is not None and policy.draw is Draw.DETERMINISTIC
        return cls(
            num_drafted + 1, num_drafted != depth, parents, LIKELIEST if likeliest else DRAWN
        )


@dataclass(frozen=True)
class Costs:
    """The costs of one verifier and its proposers on one machine, and how they were measured.

    A forward of n tokens behind a context of c is timed apart for chains and for trees, which want
    a mask. The context of a step are the tokens before the last committed one, which it reads.
    """

    circumstances: Mapping[str, Any]  # the verifier's fingerprint, machine, batch, sampling, ...
    forwards: Forwards
    drafts: Mapping[str, DraftCosts]  # by what the proposer is known by

    @property
    def _plain(self) -> DraftCosts:
        return next(each for each in self.drafts.values() if each.name == PLAIN)

    def plain_along(self, contexts: ArrayLike) -> Numbers:  # [C] -> [C, 3]
        """Predict steps without candidates behind contexts: the clock of predicted speeds."""
        verify = self._plain.verify * self.forwards.chain.along(1, contexts)
        return _columns(np.zeros_like(verify), verify, self._plain.other.at(1))

    def knows(self, draft: ProposerKey) -> bool:
        """Whether a proposer was measured."""
        return draft.known_by in self.drafts

    def of_step(self, draft: ProposerKey, shape: TreeShape, context: float) -> Seconds:
        """Predict one step of one request: never cheaper than one without candidates."""
        return Seconds(*map(float, self.along(draft, shape, [context])[0]))

    def along(
        self, draft: ProposerKey, shape: TreeShape, contexts: ArrayLike
    ) -> Numbers:  # [C] -> [C, 3]
        """Predict the parts (see `Seconds`) of one step behind each of some contexts."""
        behind = np.asarray(contexts, dtype=np.float64)
        costs, plain = self.drafts[draft.known_by], self.plain_along(behind)
        if shape.num_tokens == 1:
            found = plain.copy()
            found[:, 2] = costs.other.at(1)
        else:
            surface = self.forwards.tree if shape.branches else self.forwards.chain
            verify = costs.verify * surface.along(shape.num_tokens, behind)
            propose, other = costs.propose(shape, behind), costs.other.at(shape.num_tokens)
            found = _columns(propose, verify, other)
        found[:, 1] += np.maximum(0.0, plain.sum(axis=1) - found.sum(axis=1))
        return found

    def require(self, draft: ProposerKey, where: str) -> None:
        """Refuse a proposer that was not measured.

        Raises:
            UserError: it was not.
        """
        if not self.knows(draft):
            raise UserError(f"costs={where!r}: {self.nothing_about(draft)}")

    def nothing_about(self, draft: ProposerKey) -> str:
        """Say that a proposer was not measured, and which were."""
        known = ", ".join(each.name for each in self.drafts.values())
        return f"nothing about {draft.name}; there are {known}"

    def of_largest(self, draft: ProposerKey, tree: FixedTree | None, context: float) -> Seconds:
        """Predict a step that submits all of a tree, as most do; None: without candidates."""
        if tree is None:
            return self.of_step(draft, TreeShape.of(None, 0, 0), context)
        return self.of_step(draft, TreeShape.of(tree, tree.num_nodes, tree.max_depth), context)

    def of_tree(
        self, draft: ProposerKey, tree: FixedTree, contexts: ArrayLike
    ) -> Numbers:  # [C] -> [C, D + 1, 3]
        """Predict steps of a tree that may go down to depth 0, 1, ... behind some contexts."""
        assert not tree.may_stop
        depths = [len(path) for path in tree.nodes]
        sizes = [sum(d <= depth for d in depths) for depth in range(tree.max_depth + 1)]
        shapes = [TreeShape.of(tree, size, depth) for depth, size in enumerate(sizes)]
        return np.stack([self.along(draft, shape, contexts) for shape in shapes], axis=1)


def _columns(propose: Numbers, verify: Numbers, other: float) -> Numbers:  # [C] -> [C, 3]
    return np.stack([propose, verify, np.full_like(verify, other)], axis=1)


def with_seconds(
    traces: Sequence[Trace], costs: Costs, draft: ProposerKey, policy: TreePolicy | None
) -> tuple[list[Trace], list[PlainSteps]]:
    """Tell the steps of traces the seconds that they are predicted to take, and plain ones.

    Each step, and each plain one, is predicted behind the context where it begins.
    """
    timed = [replace(trace, steps=_timed(trace, costs, draft, policy)) for trace in traces]
    return timed, [clock_of(trace, costs) for trace in traces]


def _timed(
    trace: Trace, costs: Costs, draft: ProposerKey, policy: TreePolicy | None
) -> tuple[Step, ...]:
    places: dict[TreeShape, list[int]] = {}
    for place, step in enumerate(trace.steps):
        places.setdefault(_shape(step, policy), []).append(place)
    contexts = np.array(trace.contexts)
    found = list(trace.steps)
    for shape, some in places.items():
        for place, row in zip(some, costs.along(draft, shape, contexts[some]), strict=True):
            propose, verify, other = map(float, row)
            found[place] = replace(
                found[place], propose_seconds=propose, verify_seconds=verify, other_seconds=other
            )
    return tuple(found)


def _shape(step: Step, policy: TreePolicy | None) -> TreeShape:
    levels = None
    if policy is not None and step.drafted:
        levels = step.depth + 1 if policy.may_stop else policy.max_depth
    return TreeShape.of(policy, step.drafted, step.depth, levels)


def clock_of(trace: Trace, costs: Costs) -> PlainSteps:
    """Predict the plain steps of a text: one for each token."""
    number = len(trace.output_ids)
    plain = costs.plain_along(trace.num_prompt_tokens - 1 + np.arange(number))
    verify, decode = float(plain[:, 1].sum()), float(plain.sum())
    return PlainSteps(
        trace.prompt_id, trace.turn, number, verify, decode, stand_for=number, sample=trace.sample
    )
