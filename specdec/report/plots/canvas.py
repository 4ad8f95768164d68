"""What all plots look like: colours, marks, sizes in inches, and a legend below."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# Text and axes: dark on white in files, and `currentColor` within a page.
INK = "#22272e"
# Okabe and Ito (2008), whose black is INK here; without their yellow, which white swallows.
COLOURS = (INK, "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
MARKERS = "os^DvPX<>*"
DASHES = ("-", "--", "-.", ":")
WIDTH = 5.0  # inches, as all lengths below: a phone shows it at three quarters of its size
LEFT, RIGHT, TOP, BOTTOM = 0.62, 0.14, 0.08, 0.44
EDGE = 0.06  # that the label of y keeps free
PANEL, BAR, LEGEND_ROW, LEGEND_LINE = 2.7, 0.43, 0.167, 0.142
LEGEND_CHARACTERS = 52
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "text.color": INK,
    "text.parse_math": False,  # a path may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Plot:
    """A figure, and what must be said with it."""

    name: str  # unique, fit for a file
    group: str  # plots of one group belong together
    part: int  # from 1; later parts hold what the first had no room for
    title: str
    caption: str
    figure: Figure


def figure_with_legend(
    name: str, labels: Sequence[str], height: float, joined: bool
) -> tuple[Figure, Axes]:
    """Make room for a panel and, below it, a legend that no line of text sticks out of."""
    wrapped = ["\n".join(textwrap.wrap(label, LEGEND_CHARACTERS)) for label in labels]
    num_broken = sum(label.count("\n") for label in wrapped)
    figure, axes = panel(name, height, LEGEND_ROW * len(labels) + LEGEND_LINE * num_broken + 0.08)
    legend(figure, [_handle(index, joined) for index in range(len(labels))], wrapped)
    return figure, axes


def panel(name: str, height: float, below: float, left: float = LEFT) -> tuple[Figure, Axes]:
    total = TOP + height + BOTTOM + below
    figure = Figure(figsize=(WIDTH, total), label=name)
    width = (WIDTH - left - RIGHT) / WIDTH
    return figure, figure.add_axes((left / WIDTH, (below + BOTTOM) / total, width, height / total))


def make_room(figure: Figure, axes: Axes) -> None:
    """Move the left end of a panel until the label of y is whole, however wide its ticks are."""
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))  # 1.05, not 1.025
    box = axes.yaxis.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    missing = EDGE - box.x0 / figure.dpi if box is not None else 0.0
    if missing > 0:
        left, bottom, width, height = axes.get_position().bounds
        share = missing / WIDTH
        axes.set_position((left + share, bottom, width - share, height))


def legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], num_columns: int = 1
) -> None:
    figure.legend(
        handles=list(handles),
        labels=list(labels),
        loc="lower left",
        bbox_to_anchor=(0.0, 0.0),
        frameon=False,
        ncols=num_columns,
        labelspacing=0.35,
        borderpad=0.2,
        handlelength=2.8,
    )


def look_of(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes: no two of ten lines share two of these."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markeredgecolor": INK,  # pale colours alone would be lost on white
        "markeredgewidth": 0.6,
    }


def _handle(index: int, joined: bool = True) -> Line2D:
    look = {**look_of(index), **({} if joined else {"linestyle": "none"})}
    return Line2D([], [], **look)
