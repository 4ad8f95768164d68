"""What traces add up to, prompt by prompt: every metric is a ratio of two such sums."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace
from specdec.metrics.estimate import Estimate, FloatArray, Sums, ratio_estimate

REACHED, AT_RISK, JUDGED, FINISHED = "reached.", "at_risk.", "judged.", "finished."
LARGEST = "largest_drafted"  # the one column that is not a sum


@dataclass(frozen=True)
class Tally:
    """The traces of an arm, added up over the turns and steps of each of P prompts.

    Small enough to be kept: a hundredth of its traces. No number depends on the order of those.

    `columns` are named after what a step records, in seconds where the name ends so; beside them:
    `reached.D` (steps with A >= D), `at_risk.D` (see `acceptance_at_depth`), `judged.RULE` (E[A] of
    a judge), `finished.REASON` (texts), `num_drafts` (steps that submitted anything),
    `num_branched` (steps whose candidates were no chain), `largest_drafted` (of one step), and for
    the means over nodes (`overlap`, `bound`, `total_variation`, `kl`) their number, `num_...`.
    """

    prompt_ids: tuple[str, ...]  # [P], sorted
    categories: tuple[str, ...]  # [P]
    columns: Mapping[str, FloatArray]  # each [P]

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> "Tally":
        """Add up traces, in whatever order."""
        categories = {trace.prompt_id: trace.category for trace in traces}
        rows: dict[str, dict[str, float]] = {name: {} for name in sorted(categories)}
        for trace in traces:
            _add(rows[trace.prompt_id], _counted(trace))
        return cls.from_rows(
            [{"prompt_id": name, "category": categories[name], **row} for name, row in rows.items()]
        )

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> "Tally":
        """Read what `to_rows` wrote; what a row lacks is 0."""
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
        """Return one number of each prompt; 0 where it never came up."""
        return self.columns.get(name, np.zeros(self.num_prompts))

    def by_depth(self, prefix: str) -> FloatArray:  # [P, D]
        """Return `reached.` or `at_risk.` for d = 1 .. D, the deepest draft token of all."""
        deepest = max((int(name.removeprefix(REACHED)) for name in self.named(REACHED)), default=0)
        shape = (self.num_prompts, 0)
        columns = [self.column(f"{prefix}{depth}") for depth in range(1, deepest + 1)]
        return np.stack(columns, axis=1) if columns else np.zeros(shape)

    def named(self, prefix: str) -> list[str]:
        """List the columns whose names begin so."""
        return [name for name in self.columns if name.startswith(prefix)]

    def total(self, name: str) -> float:
        """Add up over all prompts."""
        return float(self.column(name).sum())

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


def pooled(tallies: Sequence[Tally]) -> Tally:
    """Add up several runs, of other seeds, say: a prompt stays one unit of the bootstrap."""
    if len(tallies) == 1:
        return tallies[0]
    categories: dict[str, str] = {}
    for tally in tallies:
        categories.update(zip(tally.prompt_ids, tally.categories, strict=True))
    prompt_ids = tuple(sorted(categories))
    places = {prompt_id: place for place, prompt_id in enumerate(prompt_ids)}
    columns = {
        name: np.zeros(len(prompt_ids))
        for name in dict.fromkeys(name for tally in tallies for name in tally.columns)
    }
    for tally in tallies:
        rows = [places[prompt_id] for prompt_id in tally.prompt_ids]
        for name, column in tally.columns.items():
            add = np.maximum if name == LARGEST else np.add
            columns[name][rows] = add(columns[name][rows], column)
    return Tally(prompt_ids, tuple(categories[name] for name in prompt_ids), columns)


def _counted(trace: Trace) -> dict[str, float]:
    """Add up the steps of one text."""
    steps = trace.steps
    judges = steps[0].judged if steps else ()
    return {
        "num_turns": 1,
        f"{FINISHED}{trace.finish_reason}": 1,
        "prefill_seconds": trace.prefill_seconds,
        "num_steps": len(steps),
        **{name: sum(map(count, steps)) for name, count in COUNTS.items()},
        LARGEST: max((step.drafted for step in steps), default=0),
        **{f"{JUDGED}{name}": sum(step.judged[name] for step in steps) for name in judges},
        **_by_depth(REACHED, [step.accepted for step in steps], steps),
        **_by_depth(AT_RISK, [_depth_at_risk(step) for step in steps], steps),
    }


COUNTS: Mapping[str, Callable[[Step], float]] = {
    "num_emitted": lambda step: step.emitted,
    "num_accepted": lambda step: step.accepted,
    "num_drafted": lambda step: step.drafted,
    "num_drafts": lambda step: step.drafted > 0,
    "num_branched": lambda step: step.drafted != step.depth,
    "draft_calls": lambda step: step.draft_calls,
    "propose_seconds": lambda step: step.propose_seconds,
    "verify_seconds": lambda step: step.verify_seconds,
    "other_seconds": lambda step: step.other_seconds,
    "decode_seconds": lambda s: s.propose_seconds + s.verify_seconds + s.other_seconds,
    "expected_accepted": lambda step: step.expected_accepted,
    "overlap": lambda step: sum(step.overlap),
    "num_overlap": lambda step: len(step.overlap),
    "bound": lambda step: sum(step.bound),
    "num_bound": lambda step: len(step.bound),
    "total_variation": lambda step: sum(pair[0] for pair in step.divergence),
    "kl": lambda step: sum(pair[1] for pair in step.divergence),
    "num_divergence": lambda step: len(step.divergence),
}


def _depth_at_risk(step: Step) -> int:
    """Return the deepest d that was put to the test; every d above it was as well."""
    tested = step.accepted if step.outcome is Outcome.ENDED else step.depth
    return min(step.accepted + 1, tested)


def _by_depth(prefix: str, depths: Sequence[int], steps: Sequence[Step]) -> dict[str, float]:
    """Count the steps that got at least as deep as d, for d up to the deepest draft token."""
    deepest = max((step.depth for step in steps), default=0)
    exactly = Counter(depths)
    at_least = accumulate(exactly[depth] for depth in range(deepest, 0, -1))
    return {f"{prefix}{deepest - above}": number for above, number in enumerate(at_least)}


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        before = sums.get(name, 0)
        sums[name] = max(before, value) if name == LARGEST else before + value


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)
