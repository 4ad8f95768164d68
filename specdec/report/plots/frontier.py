"""What speed costs: each arm between speed and quality."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdec.metrics import DEFINITIONS
from specdec.report.collection import ReportedArm
from specdec.report.comparison import Compared
from specdec.report.plots import limits
from specdec.report.plots.canvas import (
    INK,
    PANEL,
    Plot,
    figure_with_legend,
    look_of,
    make_room,
)
from specdec.report.plots.captions import (
    RESAMPLED,
    Numbers,
    in_one,
    is_known,
    label_of,
    listed,
    part_name,
    prompts_of,
    varying_options,
    without_number,
)
from specdec.report.plots.lines import Results
from specdec.results.options import PLUG_INS


@dataclass(frozen=True)
class Spot:
    """An arm between two axes."""

    arm: ReportedArm
    x: Numbers
    y: Numbers


def frontiers(results: Results) -> Iterator[Plot]:
    """Draw, for each setting, speed against quality; block efficiency where none is lost."""
    parts = [(setting, compared) for setting, compared in results if len(compared) > 1]
    for number, (setting, compared) in enumerate(parts[: limits.MAX_PARTS], start=1):
        lossy = any(not each.arm.lossless for each in compared)
        spots, nowhere = _spots(compared, lossy)
        if len(spots) < 2:
            continue
        name = part_name("quality_by_speed" if lossy else "block_efficiency_by_speed", number)
        title = "Speed and quality" if lossy else "Block efficiency and speed"
        title += f", {setting.label}" if len(results) > 1 else ""
        figure, notes = _scatter(name, spots, lossy)
        metric = "total_variation" if lossy else "block_efficiency"
        what = (
            "What speed costs: further right is faster, further down is closer to the verifier's"
            " distribution; lossless arms are at 0."
            if lossy
            else "Whether accepted tokens become speed: one mark for each arm."
        )
        caption = [
            what,
            *notes,
            f"{metric}: {DEFINITIONS[metric]} speedup: {DEFINITIONS['speedup']}",
            prompts_of([row for spot in spots for row in (spot.x, spot.y)]),
            RESAMPLED,
            listed("Without a number on one of the axes:", nowhere),
        ]
        if number == limits.MAX_PARTS:
            caption.append(
                listed("Not drawn:", [each.label for each, _ in parts[limits.MAX_PARTS :]])
            )
        yield Plot(name, "Speed and quality", max(1, number - 1), title, in_one(caption), figure)


def _spots(compared: Sequence[Compared], lossy: bool) -> tuple[list[Spot], list[str]]:
    found: list[Spot] = []
    nowhere: list[str] = []
    for each in compared:
        x = each.summary["speedup"]
        y = each.summary.get("total_variation" if lossy else "block_efficiency")
        if lossy and each.arm.lossless:
            y = {"value": 0.0, "low": None, "high": None, "n": each.arm.tally.num_prompts}
        if y is not None and is_known(x) and is_known(y):
            found.append(Spot(each.arm, x, y))
        else:
            nowhere.append(without_number(each.arm.label, x))
    return found, nowhere


def _scatter(name: str, spots: Sequence[Spot], lossy: bool) -> tuple[Figure, list[str]]:
    families = _families(spots)
    room = limits.LINES_PER_PLOT - (len(families) > limits.LINES_PER_PLOT)
    others = list(families)[room:]
    labels = [*list(families)[:room], *(["others"] if others else [])]
    figure, axes = figure_with_legend(name, labels, PANEL + 0.3, joined=False)
    for index, label in enumerate(families):
        for spot in families[label]:
            _draw_spot(axes, spot, min(index, len(labels) - 1))
    notes = [listed("Others:", others)]
    if lossy:
        front = undominated(spots)
        x, y = [spot.x["value"] for spot in front], [spot.y["value"] for spot in front]
        axes.plot(x, y, color=INK, linestyle=":", linewidth=1.0, zorder=1)
        heading = "Joined by dots, those than which none is both faster and closer:"
        notes.append(listed(heading, [spot.arm.label for spot in front]))
    axes.set_xlabel("speedup (ratio to proposer=none)")
    axes.set_ylabel("total variation (0 to 1)" if lossy else "tau (tokens per verifier call)")
    make_room(figure, axes)
    return figure, notes


def _families(spots: Sequence[Spot]) -> dict[str, list[Spot]]:
    """Group by arm, or by plug-ins where arms are more than can be told apart by their marks."""
    found: dict[str, list[Spot]] = {}
    if len(spots) <= limits.LINES_PER_PLOT:
        for spot in spots:
            found.setdefault(spot.arm.label, []).append(spot)
        return found
    tables = [{n: v for n, v in spot.arm.options.items() if n in PLUG_INS} for spot in spots]
    names = varying_options(tables)
    for spot, table in zip(spots, tables, strict=True):
        found.setdefault(label_of(table, names), []).append(spot)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _draw_spot(axes: Axes, spot: Spot, index: int) -> None:
    look = {**look_of(index), "linestyle": "none"}
    x, y = spot.x["value"], spot.y["value"]
    faint: dict[str, Any] = {"color": look["color"], "linewidth": 0.9, "alpha": 0.6, "zorder": 1}
    if spot.x["low"] is not None:
        axes.hlines(y, spot.x["low"], spot.x["high"], **faint)
    if spot.y["low"] is not None:
        axes.vlines(x, spot.y["low"], spot.y["high"], **faint)
    axes.plot([x], [y], **look)


def undominated(spots: Sequence[Spot]) -> list[Spot]:
    """Return the arms than which none is both faster and closer, slowest first."""
    found: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (-s.x["value"], s.y["value"])):
        if not found or spot.y["value"] < found[-1].y["value"]:
            found.append(spot)
    return found[::-1]
