"""The words of plots: labels of lines, names of parts, sentences of captions."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from specdec.report.collection import ReportedArm
from specdec.report.labels import part
from specdec.report.plots import limits
from specdec.results.options import PLUG_INS

RESAMPLED = "Intervals: 95 %, bootstrap over prompts."
LONGEST_VALUE = 40
T = TypeVar("T")
Numbers = Mapping[str, Any]  # an estimate: value, low, high, n


def packed(groups: Sequence[Sequence[T]], size: int) -> list[list[T]]:
    """Fill plots with whole groups where they fit; larger ones take several plots."""
    parts: list[list[T]] = []
    for group in groups:
        for start in range(0, len(group), size):
            some = list(group[start : start + size])
            if parts and len(parts[-1]) + len(some) <= size:
                parts[-1] += some
            else:
                parts.append(some)
    return parts


def full_label(arm: ReportedArm, setting: str, num_settings: int) -> str:
    return f"{arm.label} | {setting}" if num_settings > 1 else arm.label


def part_name(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def path_safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def key_of(value: Any) -> str:
    return repr(sorted(value.items()) if isinstance(value, Mapping) else value)


def number_of(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def is_known(row: Numbers | None) -> bool:
    return row is not None and row["value"] is not None


def without_number(label: str, row: Numbers | None) -> str:
    """Name an arm that has no number, with the reason in few words if there is one."""
    reason = None if row is None else row.get("reason")
    return label if reason is None else f"{label} ({reason.partition(':')[0]})"


def ends_of(row: Numbers) -> list[float]:
    return [row[name] for name in ("value", "low", "high") if row[name] is not None]


def prompts_of(rows: Sequence[Numbers]) -> str:
    low, high = min(row["n"] for row in rows), max(row["n"] for row in rows)
    if low < high:
        return f"n = {low} to {high} prompts."
    return f"n = {low} prompt{'s' if low != 1 else ''}."


def listed(what: str, labels: Sequence[str]) -> str:
    if not labels:
        return ""
    more = f"; and {len(labels) - limits.MAX_NAMED} more" if len(labels) > limits.MAX_NAMED else ""
    return f"{what} {'; '.join(labels[: limits.MAX_NAMED])}{more}."


def in_one(sentences: Sequence[str]) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def varying_options(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the options of which there are several values, plug-ins first; `proposer` always.

    An option that only some have is no difference of its own: they differ in a plug-in.
    """
    found: list[str] = []
    for name in dict.fromkeys(name for table in tables for name in table):
        having = [table for table in tables if name in table]
        several = len({key_of(table[name]) for table in having}) > 1
        if name in PLUG_INS:
            several = several or name == "proposer" or len(having) < len(tables)
        found += [name] if several else []
    return sorted(found, key=lambda name: PLUG_INS.index(name) if name in PLUG_INS else 99)


def label_of(options: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(
        part(name, _cut(options[name])) for name in names if options.get(name) is not None
    )


def distinct(labels: Sequence[str]) -> list[str]:
    """Number those that are alike: what tells them apart was cut, or has no name."""
    seen: Counter[str] = Counter()
    found: list[str] = []
    for label in labels:
        seen[label] += 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found


def _cut(value: Any) -> str:
    text = str(value)
    half = LONGEST_VALUE // 2
    return text if len(text) <= LONGEST_VALUE else f"{text[: half - 3]}...{text[-half:]}"
