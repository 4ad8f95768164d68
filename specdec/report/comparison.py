"""Arms of one setting, compared prompt by prompt: differences, and which are not resolved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.metrics import (
    LEVEL,
    MIN_PROMPTS,
    Contrast,
    Estimate,
    Tally,
    block_efficiency,
    efficiency_contrast,
    holm,
    holm_levels,
    incomparable,
    pooled,
    speedup,
    speedup_contrast,
    summarize,
)
from specdec.report.collection import ReportedArm, Setting

# The numbers of speed, left out where timings are not comparable.
OF_SPEED = ("speedup", "step_cost", "cost_ratio")
# The arm that a name is held to, and both over what they have in common; None if that is nothing.
Pairing = Callable[[str, str], tuple[Tally, Tally] | None]


@dataclass(frozen=True)
class Compared:
    """An arm, its metrics, and how it stands to the best (or to the reference) of its setting."""

    arm: ReportedArm
    summary: Mapping[str, Any]  # as `summary.json`, over all seeds, and its `standings`
    by_category: Mapping[str, Mapping[str, Estimate]]  # category: metric: number


def compared(setting: Setting, reference: str | None = None) -> list[Compared]:
    """Compare all arms of a setting with its best one, or with `reference`, by its label.

    Differences are paired over the prompts and seeds that both arms have.
    """
    known = {arm.label: arm for arm in setting.arms}
    summaries = {arm.label: _summary(arm) for arm in setting.arms}

    def pairing(name: str, other: str) -> tuple[Tally, Tally] | None:
        return paired(known[name], known[other])

    stand = standings(summaries, reference, pairing)
    return [
        Compared(arm, summaries[arm.label] | stand[arm.label], _by_category(arm))
        for arm in setting.arms
    ]


def standings(
    summaries: Mapping[str, Mapping[str, Any]], reference: str | None, pairing: Pairing
) -> dict[str, dict[str, Any]]:
    """Say of arms, by name, how they stand to `reference` (None: to the best) and in speed.

    * `difference` and `ratio` of block efficiency, `p_value` (adjusted by Holm 1979 for as many
      arms as are compared), and `tie`: the difference is not resolved, p >= 0.05. Intervals are at
      the level at which Holm's method tests each, so that they agree with `tie`.
    * `tie_in_speed`: the same of the speedup, held to the fastest arm.
    * `best` and `fastest`: the largest numbers, of arms with enough prompts for any of this.

    An arm is tied or not (True, False), or was not tested (None): it is what others are held to,
    or has too few prompts, or none in common.
    """
    taus = {name: each["block_efficiency"] for name, each in summaries.items()}
    speeds = {name: each["speedup"] for name, each in summaries.items()}
    best, fastest = _largest(taus), _largest(speeds)
    against = reference or best
    found: dict[str, dict[str, Any]] = {
        name: {"best": _is_marked(name, best, taus), "fastest": _is_marked(name, fastest, speeds)}
        for name in summaries
    }
    contrasts = _contrasts(summaries, against, pairing, efficiency_contrast)
    for name, row in _tested(contrasts).items():
        found[name] |= {"reference": against, **row}
    known = [name for name, row in speeds.items() if row["value"] is not None]
    for name, row in _tested(_contrasts(known, fastest, pairing, speedup_contrast)).items():
        found[name]["tie_in_speed"] = row["tie"]
    untested = {"tie": None, "tie_in_speed": None, "p_value": None}
    return {name: untested | row for name, row in found.items()}


def _largest(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    known = {name: row["value"] for name, row in rows.items() if row["value"] is not None}
    return max(known, key=lambda name: known[name], default=None)


def _is_marked(name: str, first: str | None, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    known = [row for row in rows.values() if row["value"] is not None]
    return name == first and len(known) > 1 and rows[name]["n"] >= MIN_PROMPTS


def _contrasts(
    names: Sequence[str] | Mapping[str, Any],
    against: str | None,
    pairing: Pairing,
    contrast: Callable[[Tally, Tally], Contrast | None],
) -> dict[str, Contrast]:
    found: dict[str, Contrast] = {}
    for name in names:
        both = None if against is None or name == against else pairing(name, against)
        made = None if both is None else contrast(*both)
        if made is not None:
            found[name] = made
    return found


def _tested(contrasts: Mapping[str, Contrast]) -> dict[str, dict[str, Any]]:
    p_values = {name: p for name, each in contrasts.items() if (p := each.p_value) is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    levels = dict(zip(p_values, holm_levels(list(p_values.values())), strict=True))
    return {
        name: {
            "difference": each.difference(levels.get(name, LEVEL)).to_row(),
            "ratio": each.ratio(levels.get(name, LEVEL)).to_row(),
            "p_value": adjusted.get(name),
            "tie": p_values[name] >= levels[name] if name in p_values else None,
        }
        for name, each in contrasts.items()
    }


def paired(arm: ReportedArm, other: ReportedArm) -> tuple[Tally, Tally] | None:
    """Return the sums of both over what they have in common; None if that is nothing."""
    seeds = sorted(arm.runs.keys() & other.runs.keys())
    tallies = [_over(each, seeds) for each in (arm, other)]
    turns = [
        dict(zip(tally.prompt_ids, tally.column("num_turns"), strict=True)) for tally in tallies
    ]
    shared = {name for name, number in turns[0].items() if turns[1].get(name) == number}
    if not shared:
        return None
    if len(shared) == tallies[0].num_prompts == tallies[1].num_prompts:
        return tallies[0], tallies[1]
    first, second = (
        tally.where([name in shared for name in tally.prompt_ids]) for tally in tallies
    )
    return first, second


def _over(arm: ReportedArm, seeds: Sequence[int]) -> Tally:
    if len(seeds) == len(arm.runs):
        return arm.tally
    return pooled([arm.runs[seed].tally for seed in seeds])


def _summary(arm: ReportedArm) -> dict[str, Any]:
    summary: dict[str, Any] = {"arm": arm.label, "lossless": arm.lossless, **summarize(arm.tally)}
    summary["num_seeds"] = len(arm.runs)
    memory = [run.peak_memory_bytes for run in arm.runs.values()]
    summary["peak_memory_bytes"] = max((each for each in memory if each is not None), default=None)
    lost = [run.regret for run in arm.runs.values()]
    if len(lost) == 1 and lost[0] is not None:  # what it was held to is no sum over seeds
        summary["regret"] = lost[0]
    reason = _flaw(arm)
    if reason is not None:
        unknown = Estimate(None, None, None, 0, reason).to_row()
        summary |= dict.fromkeys(OF_SPEED, unknown)
    return summary


def _flaw(arm: ReportedArm) -> str | None:
    """Say why an arm has no speed: of all of its runs together, or of one of them."""
    found = [incomparable(tally) for tally in (arm.tally, *(r.tally for r in arm.runs.values()))]
    return next((reason for reason in found if reason is not None), None)


def _by_category(arm: ReportedArm) -> dict[str, dict[str, Estimate]]:
    reason = _flaw(arm)
    found: dict[str, dict[str, Estimate]] = {}
    for category in sorted(set(arm.tally.categories)):
        own = arm.tally.where([each == category for each in arm.tally.categories])
        faster = speedup(own) if reason is None else Estimate(None, None, None, 0, reason)
        found[category] = {"block_efficiency": block_efficiency(own), "speedup": faster}
    return found
