"""Block efficiency and speed against what varies, and acceptance by depth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from specdec.metrics import DEFINITIONS
from specdec.report.collection import Collection, Setting
from specdec.report.comparison import Compared
from specdec.report.labels import TOKENS, with_short_counts
from specdec.report.plots.canvas import Plot
from specdec.report.plots.captions import (
    distinct,
    full_label,
    is_known,
    key_of,
    label_of,
    number_of,
    path_safe,
    varying_options,
    without_number,
)
from specdec.report.plots.drawing import DEPTHS, MEASURED, Frame, Line, Point, drawn

UNITS = {
    "gamma": "tokens",
    "num_nodes": "nodes",
    "batch": "requests",
    "max_new_tokens": "tokens",
    "temperature": "no unit",
    "top_k": "tokens",
}
WORDS = {TOKENS: "training tokens"}  # for what is no option of any command
NONE = "The dotted line is proposer=none."
METRICS = ("block_efficiency", "speedup")  # tokens per second of other hours do not compare
Results = Sequence[tuple[Setting, Sequence[Compared]]]


def against_options(collection: Collection, results: Results) -> Iterator[Plot]:
    """Draw block efficiency and speed against every numeric option that varies."""
    for name in _numeric(collection, results):
        for metric in METRICS:
            yield from _against_option(results, name, metric)


def _against_option(results: Results, name: str, metric: str) -> Iterator[Plot]:
    def place(each: Compared) -> float | None:
        return number_of(each.arm.telling.get(name))

    def others(key: str) -> bool:
        return key != name

    lines, alone = _lines(results, metric, place, others)
    joined = [line for line in lines if len(line.points) > 1]
    alone += [line.points[0].arm.label for line in lines if len(line.points) == 1]
    words = WORDS.get(name, name)
    short = name.rpartition(".")[2]
    unit = f" ({UNITS[short]})" if short in UNITS else ""
    frame = _framed(metric, f"by_{path_safe(name)}", f"{words}{unit}", f"against {words}")
    yield from drawn(frame, joined, alone)


def against_size(results: Results) -> Iterator[Plot]:
    """Draw the same against how many tokens the verifier is shown, if trees differ."""

    def size(each: Compared) -> float | None:
        steps, drafted = each.summary["num_steps"], each.summary["num_drafted"]
        return drafted / steps if steps and drafted is not None else None

    def others(key: str) -> bool:
        return key == "tree" or not key.startswith("tree.")

    values: dict[str, set[str]] = {}
    for each in (each for _, compared in results for each in compared):
        for name, value in each.arm.options.items():
            if name == "tree" or name.startswith("tree."):
                values.setdefault(name, set()).add(key_of(value))
    if all(len(several) < 2 for several in values.values()):
        return
    for metric in METRICS:
        lines, alone = _lines(results, metric, size, others)
        x_label = "draft tokens per step (mean, num_drafted / num_steps)"
        frame = _framed(metric, "by_draft_tokens", x_label, "against draft tokens per step")
        yield from drawn(replace(frame, kind=MEASURED), lines, alone)


def _framed(metric: str, suffix: str, x_label: str, against: str) -> Frame:
    short, y_label = {
        "block_efficiency": ("Block efficiency", "tau (tokens per verifier call)"),
        "speedup": ("Speedup", "speedup (ratio to proposer=none)"),
    }[metric]
    text = f"One line for each combination of the other options that vary. {NONE}"
    return Frame(
        f"{metric}_{suffix}",
        against[0].upper() + against[1:],
        f"{short} {against}",
        x_label,
        y_label,
        f"{text} {DEFINITIONS[metric]}",
        reference=1.0,
    )


def _lines(
    results: Results,
    metric: str,
    place: Callable[[Compared], float | None],
    others: Callable[[str], bool],
) -> tuple[list[Line], list[str]]:
    """Join arms that agree in all `others`; name the arms that have no number or no place.

    What is not compared is not joined either: circumstances count as options do.
    """
    found: list[tuple[Mapping[str, Any], Point]] = []
    nowhere: list[str] = []
    for setting, compared in results:
        for each in compared:
            if each.arm.is_baseline:
                continue  # the dotted line
            row, x = each.summary.get(metric), place(each)
            if x is None or not is_known(row):
                label = full_label(each.arm, setting.label, len(results))
                nowhere.append(without_number(label, row))
                continue
            circumstances = next(iter(each.arm.runs.values())).circumstances
            options = {n: v for n, v in each.arm.telling.items() if others(n)} | dict(circumstances)
            found.append((options, Point(x, row or {}, setting.label, each.arm)))
    names = varying_options([options for options, _ in found])
    brief = [name for name in names if not name.endswith(".path")]
    points: dict[str, list[Point]] = {}
    tables: dict[str, Mapping[str, Any]] = {}
    for options, point in found:
        points.setdefault(key_of(options), []).append(point)
        tables[key_of(options)] = options
    short = with_short_counts(list(tables.values()))
    labels = [label_of(options, brief) for options in short]
    if len(set(labels)) < len(labels):
        labels = [label_of(options, names) for options in short]
    lines = zip(distinct(labels), points.values(), strict=True)
    return [Line(label, sorted(some, key=lambda p: p.x)) for label, some in lines], nowhere


def _numeric(collection: Collection, results: Results) -> list[str]:
    """Name the options with several numbers among their values, unless these are kept apart."""
    arms = [each.arm for _, compared in results for each in compared]
    found: list[str] = []
    for name in dict.fromkeys(name for arm in arms for name in arm.telling):
        numbers = {number_of(arm.telling.get(name)) for arm in arms} - {None}
        if len(numbers) > 1 and (collection.forced or name not in collection.apart):
            found.append(name)
    return found


def by_depth(results: Results) -> Iterator[Plot]:
    """Draw how far down candidates survive, one line for each arm."""
    for metric, words in (
        ("acceptance_at_depth", "acceptance at depth d, given d-1"),
        ("reached_depth", "steps that reach depth d"),
    ):
        lines = [
            Line(
                each.arm.label,
                [
                    Point(float(depth), row, setting.label, each.arm)
                    for depth, row in each.summary[metric].items()
                    if is_known(row)
                ],
            )
            for setting, compared in results
            for each in compared
        ]
        frame = Frame(
            metric,
            "By depth",
            words[0].upper() + words[1:],
            "depth d (draft tokens)",
            f"{'P(A >= d | A >= d-1)' if metric != 'reached_depth' else 'P(A >= d)'} (probability)",
            f"One line for each arm. {DEFINITIONS[metric]}",
            kind=DEPTHS,
        )
        yield from drawn(frame, [line for line in lines if line.points], [])
