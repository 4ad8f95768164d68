"""What the steps of decoding cost on some machine: measured once, good for every configuration.

A step drafts, level by level, lets the verifier read the candidates, and does the rest: the rule,
the commit, bookkeeping. Each of these is a curve over a size. Together with the steps that replay
expects they make the seconds that decoding would take, and so tokens per second (Leviathan et al.
2023, theorem 3.8, with measured curves in place of a constant cost ratio).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from specdec.core.errors import UserError
from specdec.core.jsonl import unsealed
from specdec.core.protocols import TreePolicy
from specdec.core.trace import PlainSteps, Step, Trace
from specdec.core.values import Draw
from specdec.core.vouching import write_note
from specdec.tree.fixed import FixedTree

VERSION = 2
DRAWN, LIKELIEST = "drawn", "likeliest"  # how the children of a node are chosen: by chance or not
# A forward behind a draft's work finds threads and caches warm, so that it takes less than the same
# one among idle steps: 0.83 to 0.88 of it on two quiet cores. Much less is a machine that changed.
LEAST_FACTOR = 0.7
PLAIN = "none"  # what `Costs.drafts` calls steps without candidates


@dataclass(frozen=True)
class Curve:
    """Seconds over a size: measured points, joined by lines.

    Below the smallest size they are what they are there; beyond the largest the last line goes on.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(self.seconds) >= 1
        assert list(self.sizes) == sorted(set(self.sizes))

    def at(self, size: float) -> float:
        """Return the seconds at a size."""
        if size <= self.sizes[-1] or len(self.sizes) == 1:
            return float(np.interp(size, self.sizes, self.seconds))
        (low, high), (before, last) = self.sizes[-2:], self.seconds[-2:]
        slope = max(0.0, (last - before) / (high - low))
        return last + slope * (size - high)


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
    # The verifier's forwards over `Costs.chain` or `Costs.tree`: right behind a draft's forwards
    # threads and caches are warm, and hidden states may be asked for.
    verify: float
    other: Curve  # of the rest of a step, over the tokens that the verifier reads


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
    """The curves of one verifier and its proposers on one machine, and how they were measured.

    A forward of n tokens is timed apart for chains and for trees, which want a mask.
    """

    circumstances: Mapping[str, Any]  # the verifier's fingerprint, machine, batch, sampling, ...
    chain: Curve  # seconds of a verifier forward over the tokens that it reads
    tree: Curve
    drafts: Mapping[str, DraftCosts]  # by what the proposer is known by

    @property
    def plain(self) -> Seconds:
        """What a step without candidates takes: the clock of predicted speeds."""
        plain = next(each for each in self.drafts.values() if each.name == PLAIN)
        return Seconds(0.0, self.chain.at(1), plain.other.at(1))

    def knows(self, draft: ProposerKey) -> bool:
        """Whether a proposer was measured."""
        return draft.known_by in self.drafts

    def of_step(self, draft: ProposerKey, shape: TreeShape) -> Seconds:
        """Predict one step of one request: never cheaper than one without candidates."""
        costs = self.drafts[draft.known_by]
        propose = 0.0
        if shape.num_tokens > 1:
            propose = costs.start
            if shape.parents:
                # Where one kind of tree was not timed, the other is the better guess than nothing.
                level = costs.level.get(shape.choice) or next(iter(costs.level.values()))
                propose += sum(level.at(number) for number in shape.parents)
        verify = (self.tree if shape.branches else self.chain).at(shape.num_tokens)
        if shape.num_tokens > 1:
            verify *= costs.verify
        other = costs.other.at(shape.num_tokens)
        missing = sum(self.plain) - (propose + verify + other)
        return Seconds(propose, verify + max(0.0, missing), other)

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

    def of_largest(self, draft: ProposerKey, tree: FixedTree | None) -> Seconds:
        """Predict a step that submits all of a tree, as most do; None: without candidates."""
        if tree is None:
            return self.of_step(draft, TreeShape.of(None, 0, 0))
        return self.of_step(draft, TreeShape.of(tree, tree.num_nodes, tree.max_depth))

    def of_tree(self, draft: ProposerKey, tree: FixedTree) -> list[Seconds] | None:  # [D + 1]
        """Predict steps of a tree that may go down to depth 0, 1, ...; None where it may stop."""
        if tree.may_stop:
            return None
        depths = [len(path) for path in tree.nodes]
        sizes = [sum(d <= depth for d in depths) for depth in range(tree.max_depth + 1)]
        shapes = [TreeShape.of(tree, size, depth) for depth, size in enumerate(sizes)]
        return [self.of_step(draft, shape) for shape in shapes]

    def write(self, path: Path) -> None:
        """Write a file that `read_costs` reads."""
        write_note(path, {"version": VERSION, **asdict(self)})


def read_costs(path: Path) -> Costs:
    """Read what `specdec-costs` wrote.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["version"] != VERSION:
            raise ValueError(f"version {row['version']}, and this reads version {VERSION}")
        costs = Costs(
            row["circumstances"],
            _curve(row["chain"]),
            _curve(row["tree"]),
            {name: _draft(each) for name, each in row["drafts"].items()},
        )
        _require_possible(costs)
        unsealed(row)
        return costs
    except OSError as error:
        raise UserError(f"costs={str(path)!r}: cannot be read ({error.strerror})") from None
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"costs={str(path)!r}: not what specdec-costs writes ({what}); measure anew"
        ) from None


def _require_possible(costs: Costs) -> None:
    """Refuse seconds that no machine takes.

    Raises:
        ValueError: a number is below 0 or none at all, more tokens are said to take less, or steps
            without candidates are missing.
    """
    forwards = {"chain": costs.chain, "tree": costs.tree}
    curves = dict(forwards)
    if PLAIN not in [draft.name for draft in costs.drafts.values()]:
        raise ValueError("nothing about plain steps")
    for draft in costs.drafts.values():
        name = draft.name
        curves |= {f"{name}: a level, {choice}": curve for choice, curve in draft.level.items()}
        curves[f"{name}: the rest of a step"] = draft.other
        for part, number in (("start", draft.start), ("verify", draft.verify)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: {part} {number}")
        if draft.verify < LEAST_FACTOR:
            raise ValueError(f"{name}: verify {draft.verify}, expected {LEAST_FACTOR} at least")
    for name, curve in curves.items():
        if not all(0 <= each < math.inf for each in curve.seconds):
            raise ValueError(f"{name}: seconds below 0")
    for name, curve in forwards.items():
        if list(curve.seconds) != sorted(curve.seconds):
            raise ValueError(f"{name}: more tokens take less time")


def _curve(row: Mapping[str, Sequence[Any]]) -> Curve:
    return Curve(tuple(map(int, row["sizes"])), tuple(map(float, row["seconds"])))


def _draft(row: Mapping[str, Any]) -> DraftCosts:
    levels = {name: _curve(each) for name, each in row["level"].items()}
    return DraftCosts(
        str(row["name"]), float(row["start"]), levels, float(row["verify"]), _curve(row["other"])
    )


def costs_of_file(where: str, fingerprint: Mapping[str, str]) -> Costs:
    """Read what one verifier costs; other weights of the same shape cost the same.

    Raises:
        UserError: the file is no such file, or about another configuration or another dtype.
    """
    costs = read_costs(Path(where))
    theirs = costs.circumstances["verifier"]
    unlike = [name for name in ("config", "dtype") if theirs.get(name) != fingerprint[name]]
    if unlike:
        raise UserError(
            f"costs={where!r}: measured on another verifier, {theirs.get('path')!r}"
            f" ({', '.join(unlike)} differ); measure this one with specdec-costs"
        )
    return costs


def with_seconds(
    traces: Sequence[Trace], costs: Costs, draft: ProposerKey, policy: TreePolicy | None
) -> tuple[list[Trace], list[PlainSteps]]:
    """Tell the steps of traces the seconds that they are predicted to take, and plain ones."""
    timed = [
        replace(trace, steps=tuple(_timed(step, costs, draft, policy) for step in trace.steps))
        for trace in traces
    ]
    verify, decode = costs.plain.verify, sum(costs.plain)
    clock = [
        PlainSteps(
            trace.prompt_id, trace.turn, 1, verify, decode, len(trace.output_ids), trace.sample
        )
        for trace in traces
    ]
    return timed, clock


def _timed(step: Step, costs: Costs, draft: ProposerKey, policy: TreePolicy | None) -> Step:
    levels = None
    if policy is not None and step.drafted:
        levels = step.depth + 1 if policy.may_stop else policy.max_depth
    shape = TreeShape.of(policy, step.drafted, step.depth, levels)
    propose, verify, other = costs.of_step(draft, shape)
    return replace(step, propose_seconds=propose, verify_seconds=verify, other_seconds=other)
