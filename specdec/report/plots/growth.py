"""How the seconds of a forward grow: with context, tokens or requests, one line for each rest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, NullLocator, ScalarFormatter

from specdec.report.labels import rounded_apart
from specdec.report.plots import limits
from specdec.report.plots.canvas import PANEL, STYLE, Plot, figure_with_legend, look_of
from specdec.report.plots.captions import packed, part_name

LINEAR = (
    "Both axes are logarithmic: what is proportional to x rises by one doubling for each doubling."
)


@dataclass(frozen=True)
class Series:
    """Milliseconds over something, to be joined."""

    label: str
    x: Sequence[float]
    milliseconds: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """Over what the seconds of a forward are drawn."""

    name: str  # fit for a file
    words: str  # context (tokens)
    title: str
    y_words: str = "a forward (milliseconds)"


def growth(axis: Axis, lines: Sequence[Series], caption: str) -> dict[str, Plot]:
    """Draw lines with at least two points, at most ten a plot."""
    joined = [line for line in lines if len(line.x) > 1]
    with matplotlib.rc_context(STYLE):
        found = list(_drawn(axis, joined, caption))
    return {plot.name: plot for plot in found}


def _drawn(axis: Axis, lines: Sequence[Series], caption: str) -> Iterator[Plot]:
    parts = packed([lines], limits.LINES_PER_PLOT)
    for number, some in enumerate(parts, start=1):
        name = part_name(axis.name, number)
        figure, axes = figure_with_legend(name, [each.label for each in some], PANEL, joined=True)
        for index, line in enumerate(some):
            axes.plot(line.x, line.milliseconds, **look_of(index))
        _scale(axes, sorted({x for line in lines for x in line.x}))
        axes.set_xlabel(axis.words)
        axes.set_ylabel(axis.y_words)
        yield Plot(name, "Growth", number, axis.title, f"{caption} {LINEAR}", figure)


def _scale(axes: Axes, places: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_major_formatter(FixedFormatter(rounded_apart(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
