"""What traces add up to, prompt by prompt: every metric is a ratio of two such sums."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specdec.core.errors import UserError
from specdec.core.narrowing import is_sequence
from specdec.core.trace import PlainSteps, Trace
from specdec.metrics.columns import KNOWN, LARGEST, REACHED, clocked, counted
from specdec.metrics.estimate import Estimate, FloatArray, Sums, ratio_estimate


@dataclass(frozen=True)
class Tally:
    """The traces of an arm, added up over the samples, turns and steps of each of P prompts.

    Small enough to be kept: a hundredth of its traces. No number depends on the order of those.
    A column that is not there is unknown, unless it is one of a family with a point in its name.

    `columns` are named after what a step records, in seconds where the name ends so; beside them:
    `reached.D` (steps with A >= D), `at_risk.D` (see `acceptance_at_depth`), `judged.RULE` (E[A] of
    a judge), `finished.REASON` (texts), `num_drafts` (steps that submitted anything),
    `num_branched` (steps whose candidates were no chain), `largest_drafted` (of one step), and for
    the means over nodes (`overlap`, `bound`, `total_variation`, `kl`) their number, `num_...`.

    What a plug-in need not say is added up over the steps that know it, `known.NAME` of them
    (`expected_accepted`, `draft_calls`, `judged.RULE`); `gained.RULE` is E[A] of a judge less that
    of the deciding rule, where both are known. `clock.*` are plain steps that were timed beside the
    arm's, as many as the texts have tokens, and `clocked.*` the arm's own steps of these texts:
    their number and seconds.

    Where experts were counted, `experts` adds up a step's distinct ones, the mean over layers,
    `known.experts` the steps, and `experts_at.N` and `counted_at.N` both of those steps whose
    forwards read N tokens.

    Args:
        prompt_ids: [P].
        categories: [P], of the prompts.
        columns: sums [P] by name.
    """

    prompt_ids: tuple[str, ...]  # [P], sorted
    categories: tuple[str, ...]  # [P]
    columns: Mapping[str, FloatArray]  # each [P]

    @classmethod
    def of(cls, traces: Sequence[Trace], clock: Sequence[PlainSteps] = ()) -> "Tally":
        """Add up traces, in whatever order; `clock` has the plain steps beside some of them.

        Raises:
            UserError: these are none.
        """
        if not _are_traces(traces):
            kind = type(traces).__name__
            raise UserError(f"{kind}: expected a list of traces, as decode returns")
        categories = {trace.prompt_id: trace.category for trace in traces}
        beside = {plain.key: plain for plain in clock}
        rows: dict[str, dict[str, float]] = {name: {} for name in sorted(categories)}
        for trace in traces:
            row = counted(trace)
            plain = beside.get(trace.key)
            timed = {} if plain is None or not plain.num_steps else clocked(row, plain)
            _add(rows[trace.prompt_id], row | timed)
        return cls.from_rows(
            [{"prompt_id": name, "category": categories[name], **row} for name, row in rows.items()]
        )

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Tally":
        """Read what `to_rows` wrote; what some rows lack is 0 there."""
        names = dict.fromkeys(name for row in rows for name in row)
        numbers = [name for name in names if name not in ("prompt_id", "category")]
        return cls(
            tuple(row["prompt_id"] for row in rows),
            tuple(row["category"] for row in rows),
            {name: np.array([row.get(name, 0) for row in rows], np.float64) for name in numbers},
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """Return plain values, one object a prompt."""
        names = {"prompt_id": self.prompt_ids, "category": self.categories}
        columns = {name: [_plain(x) for x in column] for name, column in self.columns.items()}
        table = {**names, **columns}
        return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]

    @property
    def num_prompts(self) -> int:
        """P, the units that the bootstrap resamples."""
        return len(self.prompt_ids)

    def column(self, name: str) -> FloatArray:  # [P]
        """Return one number of each prompt; 0 where it never came up, NaN where it is unknown."""
        empty = 0.0 if "." in name else np.nan
        return self.columns.get(name, np.full(self.num_prompts, empty))

    def by_depth(self, prefix: str) -> FloatArray:  # [P, D]
        """Return `reached.` or `at_risk.` for d = 1 .. D, the deepest draft token of all."""
        deepest = max((int(name.removeprefix(REACHED)) for name in self.named(REACHED)), default=0)
        shape = (self.num_prompts, 0)
        columns = [self.column(f"{prefix}{depth}") for depth in range(1, deepest + 1)]
        return np.stack(columns, axis=1) if columns else np.zeros(shape)

    def named(self, prefix: str) -> list[str]:
        """List the columns whose names begin so."""
        return [name for name in self.columns if name.startswith(prefix)]

    def knows(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self.columns

    def total(self, name: str) -> float:
        """Add up over all prompts; NaN where that is unknown."""
        return float(self.column(name).sum())

    def count(self, name: str) -> int | None:
        """Add up a number of things; None where not every step knows of them."""
        partly = f"{KNOWN}{name}" in self.columns
        if partly and self.total(f"{KNOWN}{name}") < self.total("num_steps"):
            return None
        total = self.total(name)
        return None if np.isnan(total) else int(total)

    def sums(self, numerator: str, denominator: str) -> Sums:
        """Return both sides of a ratio, prompt by prompt."""
        return Sums(self.column(numerator), self.column(denominator))

    def ratio(self, numerator: str, denominator: str) -> Estimate:
        """Estimate a ratio of sums.

        Long texts weigh more than short ones: this is the mean over steps (or tokens, or seconds),
        not the mean over prompts of each prompt's own ratio.
        """
        return ratio_estimate(*self.sums(numerator, denominator))

    def where(self, kept: Sequence[bool]) -> "Tally":
        """Keep some of the prompts."""
        rows = np.flatnonzero(kept)
        return Tally(
            tuple(self.prompt_ids[row] for row in rows),
            tuple(self.categories[row] for row in rows),
            {name: column[rows] for name, column in self.columns.items()},
        )

    def assert_paired(self, other: "Tally") -> None:
        """Raise an AssertionError unless both hold as many turns of the same prompts."""
        same = self.prompt_ids == other.prompt_ids
        same = same and np.array_equal(self.column("num_turns"), other.column("num_turns"))
        assert same, "the arms did not decode the same prompts"


def mean_tally(tallies: Sequence[Tally]) -> Tally:
    """Return the mean of tallies of the same texts, each of which came about by chance."""
    first = tallies[0]
    for each in tallies[1:]:
        first.assert_paired(each)
    names = dict.fromkeys(name for each in tallies for name in each.columns)
    none = np.zeros(len(first.prompt_ids))
    columns = {
        name: np.mean([each.columns.get(name, none) for each in tallies], axis=0) for name in names
    }
    return Tally(first.prompt_ids, first.categories, columns)


def pooled(tallies: Sequence[Tally]) -> Tally:
    """Add up several runs, of other seeds, say: a prompt stays one unit of the bootstrap."""
    if len(tallies) == 1:
        return tallies[0]
    categories: dict[str, str] = {}
    for tally in tallies:
        categories.update(zip(tally.prompt_ids, tally.categories, strict=True))
    prompt_ids = tuple(sorted(categories))
    places = {prompt_id: place for place, prompt_id in enumerate(prompt_ids)}
    names = dict.fromkeys(name for tally in tallies for name in tally.columns)
    columns = {name: np.zeros(len(prompt_ids)) for name in names}
    for tally in tallies:
        rows = [places[prompt_id] for prompt_id in tally.prompt_ids]
        for name in names:
            add = np.maximum if name == LARGEST else np.add
            columns[name][rows] = add(columns[name][rows], tally.column(name))
    return Tally(prompt_ids, tuple(categories[name] for name in prompt_ids), columns)


def _are_traces(traces: object) -> bool:
    return is_sequence(traces) and all(isinstance(each, Trace) for each in traces)


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        before = sums.get(name, 0)
        sums[name] = max(before, value) if name == LARGEST else before + value


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)
