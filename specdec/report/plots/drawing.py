"""Lines with intervals, drawn a few a plot and in the same scales."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from specdec.report.collection import ReportedArm
from specdec.report.labels import rounded_apart
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
    ends_of,
    in_one,
    listed,
    packed,
    part_name,
    prompts_of,
)

# What x is: values of an option, depths, measured numbers, or places in an order.
VALUES, DEPTHS, MEASURED, PLACES = "values", "depths", "measured", "places"


@dataclass(frozen=True)
class Point:
    """A number at a place, and what it is about."""

    x: float
    row: Numbers
    setting: str
    arm: ReportedArm


@dataclass(frozen=True)
class Line:
    """Points to be joined, in the order of x."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Frame:
    """What is the same for all parts of a plot."""

    name: str
    group: str
    title: str
    x_label: str
    y_label: str
    text: str  # the caption's beginning; the title stands before it
    reference: float | None = None  # where to draw a dotted line
    kind: str = VALUES  # of x


def drawn(frame: Frame, lines: Sequence[Line], nowhere: Sequence[str]) -> Iterator[Plot]:
    """Draw lines, at most ten a plot, all parts in the same scales."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.points[0].setting, []).append(line)
    parts = packed(list(groups.values()), limits.LINES_PER_PLOT)
    several_settings = frame.kind == DEPTHS and len(groups) > 1  # else labels say them
    beyond = [
        f"{line.label} | {line.points[0].setting}" if several_settings else line.label
        for some in parts[limits.MAX_PARTS :]
        for line in some
    ]
    for number, some in enumerate(parts[: limits.MAX_PARTS], start=1):
        last = number == min(len(parts), limits.MAX_PARTS)
        title, titled = _titled(frame, some, groups, number, min(len(parts), limits.MAX_PARTS))
        name = part_name(frame.name, number)
        figure, axes = figure_with_legend(name, [line.label for line in titled], PANEL, joined=True)
        for index, line in enumerate(titled):
            aside = frame.kind in (VALUES, DEPTHS)
            _draw_line(axes, line, index, index - (len(titled) - 1) / 2 if aside else 0.0)
        if frame.reference is not None:
            axes.axhline(frame.reference, color=INK, linestyle=":", linewidth=1.0)
        _scale(axes, frame, lines)
        axes.set_xlabel(frame.x_label)
        axes.set_ylabel(frame.y_label)
        make_room(figure, axes)
        rows = [point.row for line in some for point in line.points]
        caption = [frame.text, prompts_of(rows), RESAMPLED]
        if last:
            caption += [listed("Not drawn, for want of room:", beyond)]
            caption += [listed("Without two values to join:", list(dict.fromkeys(nowhere)))]
        yield Plot(name, frame.group, number, title, in_one(caption), figure)


def _titled(
    frame: Frame, lines: Sequence[Line], groups: Mapping[str, Any], number: int, of: int
) -> tuple[str, Sequence[Line]]:
    """Say the setting once if all lines of a part share it, else with every line of an arm."""
    title = frame.title
    settings = list(dict.fromkeys(point.setting for line in lines for point in line.points))
    if len(groups) > 1 and len(settings) == 1:
        title += f", {settings[0]}"
    elif frame.kind == DEPTHS and len(settings) > 1:
        lines = [replace(line, label=f"{line.label} | {line.points[0].setting}") for line in lines]
    return title + (f" (part {number} of {of})" if of > 1 else ""), lines


def _draw_line(axes: Axes, line: Line, index: int, shift: float) -> None:
    """Draw points and intervals, `shift` steps aside, so that they do not hide each other."""
    look = look_of(index)
    aside = ScaledTranslation(2.2 * shift / 72, 0, axes.figure.dpi_scale_trans)
    transform = axes.transData + aside
    x = [point.x for point in line.points]
    axes.plot(x, [point.row["value"] for point in line.points], transform=transform, **look)
    sure = [point for point in line.points if point.row["low"] is not None]
    axes.vlines(
        [point.x for point in sure],
        [point.row["low"] for point in sure],
        [point.row["high"] for point in sure],
        color=look["color"],
        linewidth=1.1,
        alpha=0.75,
        transform=transform,
    )


def _scale(axes: Axes, frame: Frame, lines: Sequence[Line]) -> None:
    points = [point for line in lines for point in line.points]
    _scale_x(axes, sorted({point.x for point in points}), frame.kind)
    if frame.kind == DEPTHS:
        axes.set_ylim(-0.03, 1.03)
        return
    values = [v for point in points for v in ends_of(point.row)]
    values += [] if frame.reference is None else [frame.reference]
    axes.set_ylim(*_padded(min(values), max(values), 0.06))


def _scale_x(axes: Axes, values: Sequence[float], kind: str) -> None:
    """Take logarithms where values span much, and put ticks where values are."""
    wide = kind in (VALUES, MEASURED) and values[0] > 0 and values[-1] / values[0] >= 8
    places = [math.log2(value) if wide else value for value in values]
    low, high = _padded(places[0], places[-1], 0.07)
    axes.set_xlim(low, high)
    if wide:
        axes.set_xscale("log", base=2)
        axes.set_xlim(2**low, 2**high)
    ticks = _ticks(places, high - low, kind)
    if ticks is None and wide:
        ticks = list(range(math.ceil(low), math.floor(high) + 1))
    if ticks is not None:
        shown = [2**tick if wide else tick for tick in ticks]
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_major_formatter(FixedFormatter(rounded_apart(shown)))
        axes.xaxis.set_minor_locator(NullLocator())


def _ticks(places: Sequence[float], width: float, kind: str) -> list[float] | None:
    """Return the places themselves, unless labels there would run into each other."""
    if kind == DEPTHS:
        return list(places[:: math.ceil(len(places) / 12)])
    gaps = [(after - before) / width for before, after in pairwise(places)]
    return list(places) if kind == VALUES and min(gaps, default=1.0) > 0.055 else None


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    pad = (high - low) * share or 0.5
    return low - pad, high + pad
