"""Arms of one setting, compared prompt by prompt: differences, and which are not resolved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.metrics import (
    Estimate,
    Tally,
    block_efficiency,
    cost_ratio,
    efficiency_difference,
    efficiency_p_value,
    efficiency_ratio,
    holm,
    pooled,
    speedup,
    speedup_p_value,
    summarize,
    tokens_per_second,
)
from specdec.report.collect import Arm, Setting

LEVEL = 0.05


@dataclass(frozen=True)
class Compared:
    """An arm, its metrics, and how it stands to the best (or to the reference) of its setting."""

    arm: Arm
    summary: Mapping[str, Any]  # as `summary.json`, over all seeds
    by_category: Mapping[str, Mapping[str, Estimate]]  # category: metric: number
    tie: bool  # block efficiency: the difference to the best is not resolved
    tie_in_speed: bool


def compared(setting: Setting, reference: str | None = None) -> list[Compared]:
    """Compare all arms of a setting with its best one, or with `reference`, by its label.

    Differences are paired over the prompts and seeds that both arms have. p-values are adjusted
    (Holm 1979) for as many arms as are compared; an arm is tied with the best unless its own is
    below 0.05.

    """
    known = {arm.label: arm for arm in setting.arms}
    best = max(setting.arms, key=lambda arm: _value(block_efficiency(arm.tally)))
    against = best if reference is None else known[reference]
    tied = _ties(setting.arms, best, efficiency_p_value)
    tied_in_speed = _speed_ties(setting)
    return [
        Compared(
            arm,
            _summary(arm, against, setting.baseline),
            _by_category(arm, setting.baseline),
            arm.label in tied,
            arm.label in tied_in_speed,
        )
        for arm in setting.arms
    ]


def paired(arm: Arm, other: Arm) -> tuple[Tally, Tally] | None:
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


def _over(arm: Arm, seeds: Sequence[int]) -> Tally:
    if len(seeds) == len(arm.runs):
        return arm.tally
    return pooled([arm.runs[seed].tally for seed in seeds])


def _ties(
    arms: Sequence[Arm], best: Arm, p_value: Callable[[Tally, Tally], float | None]
) -> set[str]:
    """Return the arms that are not resolved from the best, itself among them."""
    p_values: dict[str, float] = {}
    for arm in arms:
        both = None if arm is best else paired(arm, best)
        found = None if both is None else p_value(*both)
        if found is not None:
            p_values[arm.label] = found
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {arm.label for arm in arms if adjusted.get(arm.label, 1.0) >= LEVEL}


def _speed_ties(setting: Setting) -> set[str]:
    best = max(setting.arms, key=lambda arm: _value(tokens_per_second(arm.tally)))
    return _ties(setting.arms, best, speedup_p_value)


def _summary(arm: Arm, against: Arm, baseline: Arm | None) -> dict[str, Any]:
    summary: dict[str, Any] = {"arm": arm.label, "lossless": arm.lossless, **summarize(arm.tally)}
    summary["num_seeds"] = len(arm.runs)
    memory = [run.peak_memory_bytes for run in arm.runs.values()]
    summary["peak_memory_bytes"] = max((each for each in memory if each), default=None)
    both = None if arm is against else paired(arm, against)
    if both is not None:
        summary["reference"] = against.label
        summary["difference"] = efficiency_difference(*both).to_row()
        summary["ratio"] = efficiency_ratio(*both).to_row()
    both = None if baseline is None else paired(arm, baseline)
    if both is not None:
        summary["speedup"] = speedup(*both).to_row()
        summary["cost_ratio"] = cost_ratio(*both).to_row()
    return summary


def _by_category(arm: Arm, baseline: Arm | None) -> dict[str, dict[str, Estimate]]:
    both = None if baseline is None else paired(arm, baseline)
    found: dict[str, dict[str, Estimate]] = {}
    for category in sorted(set(arm.tally.categories)):
        own = arm.tally.where([each == category for each in arm.tally.categories])
        found[category] = {"block_efficiency": block_efficiency(own)}
        if both is not None:
            # By the arm's own word: the baseline's files may call the prompts otherwise.
            kept = [each == category for each in both[0].categories]
            found[category]["speedup"] = speedup(*(tally.where(kept) for tally in both))
    return found


def _value(estimate: Estimate) -> float:
    return float("-inf") if estimate.value is None else estimate.value
