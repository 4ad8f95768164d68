"""Figures of a folder of runs, each with a caption: what it shows, of how many prompts."""

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from specdec.metrics import DEFINITIONS
from specdec.report.collect import Arm, Collection, Setting, part
from specdec.report.comparison import Compared
from specdec.report.options import PLUG_INS

Results = Sequence[tuple[Setting, Sequence[Compared]]]
Numbers = Mapping[str, Any]  # an estimate: value, low, high, n
T = TypeVar("T")

LINES_PER_PLOT = 10
BARS_PER_PLOT = 25
MAX_PARTS = 4  # plots of one kind; what is beyond is named in the last caption
MAX_NAMED = 12

# Text and axes: dark on white in files, and `currentColor` within a page.
INK = "#22272e"
# Okabe and Ito (2008), whose black is INK here; without their yellow, which white swallows.
COLOURS = (INK, "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
MARKERS = "os^DvPX<>*"
DASHES = ("-", "--", "-.", ":")
PARTS_OF_A_STEP = {  # colour and hatch
    "propose": ("#e69f00", "///"),
    "verify": ("#0072b2", ""),
    "other": ("#cc79a7", "xxx"),
}

WIDTH = 5.0  # inches, as all lengths below: a phone shows it at three quarters of its size
LEFT, RIGHT, TOP, BOTTOM = 0.62, 0.14, 0.08, 0.44
PANEL, BAR, LEGEND_ROW, LEGEND_LINE = 2.7, 0.43, 0.167, 0.142
LEGEND_CHARACTERS = 52
LONGEST_VALUE = 40

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
UNITS = {
    "gamma": "tokens",
    "num_nodes": "nodes",
    "batch": "requests",
    "max_new_tokens": "tokens",
    "max_steps": "steps",
    "temperature": "no unit",
    "top_k": "tokens",
}
VALUES, DEPTHS, MEASURED = "values", "depths", "measured"  # what x is
NONE = "The dotted line is proposer=none."
RESAMPLED = "Intervals: 95 %, bootstrap over prompts."


@dataclass(frozen=True)
class Plot:
    """A figure, and what must be said with it."""

    name: str  # unique, fit for a file
    group: str  # plots of one group belong together
    part: int  # from 1; later parts hold what the first had no room for
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Point:
    """A number at a place, and what it is about."""

    x: float
    row: Numbers
    setting: str
    arm: Arm


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
    text: str  # the caption's beginning
    reference: float | None = None  # where to draw a dotted line
    kind: str = VALUES  # of x: values of an option, depths, or measured numbers


def figures(collection: Collection, results: Results) -> dict[str, Plot]:
    """Draw all that these runs allow, by name, in the order in which they are read.

    A kind of plot that would say nothing (no option varies, nothing was timed) is left out.
    """
    with matplotlib.rc_context(STYLE):
        found = [
            *_frontiers(results),
            *_against_options(collection, results),
            *_against_size(results),
            *_by_depth(results),
            *_step_seconds(results),
        ]
    return {plot.name: plot for plot in found}


def svg(figure: Figure) -> str:
    """Return a figure as an element for a page, in the colours of the text around it.

    Ids begin with the figure's label, so that several figures fit into one page.
    """
    text = _written(figure, "none")
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Rules within a page would hold for all of it.
    text = re.sub(r"<(style|metadata).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", '<svg stroke-linejoin="round"', 1)
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif")
    needed = set(re.findall(r'(?:href="#|url\(#)([^")]*)', text))
    text = re.sub(r' id="([^"]*)"', lambda id_: id_[0] if id_[1] in needed else "", text)
    prefix = _safe(str(figure.get_label()))
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def save(plots: Mapping[str, Plot], folder: Path) -> list[Path]:
    """Write `plots/NAME.svg` and `plots/NAME.png` into a folder, titles included."""
    target = folder / "plots"
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, plot in plots.items():
        vector, pixels = target / f"{name}.svg", target / f"{name}.png"
        with matplotlib.rc_context(STYLE), _titled_figure(plot) as figure:
            vector.write_text(_written(figure, "path"), encoding="utf-8")
            figure.savefig(pixels, dpi=150, facecolor="white", metadata={"Software": None})
        written += [vector, pixels]
    return written


@contextmanager
def _titled_figure(plot: Plot) -> Iterator[Figure]:
    """Add room at the top with the title in it; a page says it in words of its own."""
    title = "\n".join(textwrap.wrap(plot.title, 60))
    figure = plot.figure
    height, more = figure.get_figheight(), 0.18 * (title.count("\n") + 1) + 0.06
    share = height / (height + more)
    boxes = [(axes, axes.get_position().bounds) for axes in figure.axes]
    figure.set_figheight(height + more)
    for axes, (left, bottom, width, tall) in boxes:
        axes.set_position((left, bottom * share, width, tall * share))
    text = figure.text(0.02, 1 - 0.04 / (height + more), title, va="top", weight="bold")
    try:
        yield figure
    finally:
        text.remove()
        figure.set_figheight(height)
        for axes, bounds in boxes:
            axes.set_position(bounds)


def _written(figure: Figure, fonttype: str) -> str:
    buffer = io.StringIO()
    told: dict[Any, Any] = {
        "svg.fonttype": fonttype,
        "svg.hashsalt": str(figure.get_label()),
    }
    nobody = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**STYLE, **told}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nobody)
    return buffer.getvalue()


# Which lines there are.


def _against_options(collection: Collection, results: Results) -> Iterator[Plot]:
    """Draw block efficiency and speed against every numeric option that varies."""
    for name in _numeric(collection, results):
        for metric in _metrics(results):
            yield from _against_option(results, name, metric)


def _against_option(results: Results, name: str, metric: str) -> Iterator[Plot]:
    def place(each: Compared) -> float | None:
        return _number(each.arm.options.get(name))

    def others(key: str) -> bool:
        return key != name

    lines, alone = _lines(results, metric, place, others)
    joined = [line for line in lines if len(line.points) > 1]
    alone += [line.points[0].arm.label for line in lines if len(line.points) == 1]
    short = name.rpartition(".")[2]
    unit = f" ({UNITS[short]})" if short in UNITS else ""
    frame = _framed(metric, f"by_{_safe(name)}", f"{name}{unit}", f"against {name}")
    yield from _drawn(frame, joined, alone)


def _against_size(results: Results) -> Iterator[Plot]:
    """Draw the same against how many tokens the verifier is shown, if trees differ."""

    def size(each: Compared) -> float | None:
        steps = each.summary["num_steps"]
        return each.summary["num_drafted"] / steps if steps else None

    def others(key: str) -> bool:
        return key == "tree" or not key.startswith("tree.")

    values: dict[str, set[str]] = {}
    for each in (each for _, compared in results for each in compared):
        for name, value in each.arm.options.items():
            if name == "tree" or name.startswith("tree."):
                values.setdefault(name, set()).add(_key(value))
    if all(len(several) < 2 for several in values.values()):
        return
    for metric in _metrics(results):
        lines, alone = _lines(results, metric, size, others)
        x_label = "draft tokens per step (mean, num_drafted / num_steps)"
        frame = _framed(metric, "by_draft_tokens", x_label, "against draft tokens per step")
        yield from _drawn(replace(frame, kind=MEASURED), lines, alone)


def _framed(metric: str, suffix: str, x_label: str, against: str) -> Frame:
    short, y_label = {
        "block_efficiency": ("Block efficiency", "tau (tokens per verifier call)"),
        "speedup": ("Speedup", "speedup (ratio to proposer=none)"),
        "tokens_per_second": ("Speed", "tokens per second"),
    }[metric]
    reference = None if metric == "tokens_per_second" else 1.0
    text = f"{short} {against}, one line for each combination of the other options that vary."
    if metric != "tokens_per_second":
        text += f" {NONE}"
    return Frame(
        f"{metric}_{suffix}",
        against[0].upper() + against[1:],
        f"{short} {against}",
        x_label,
        y_label,
        f"{text} {DEFINITIONS[metric]}",
        reference,
    )


def _metrics(results: Results) -> tuple[str, str]:
    return "block_efficiency", _speed(each for _, compared in results for each in compared)


def _speed(compared: Iterable[Compared]) -> str:
    """Name the metric of speed that there is: without a baseline, tokens per second."""
    known = any(each.summary.get("speedup") for each in compared if not each.arm.is_baseline)
    return "speedup" if known else "tokens_per_second"


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
            if each.arm.is_baseline and metric != "tokens_per_second":
                continue  # the dotted line
            row, x = each.summary.get(metric), place(each)
            if x is None or not _known(row):
                nowhere.append(_full_label(each.arm, setting.label, len(results)))
                continue
            circumstances = next(iter(each.arm.runs.values())).circumstances
            told = {n: v for n, v in each.arm.options.items() if others(n)} | dict(circumstances)
            found.append((told, Point(x, row or {}, setting.label, each.arm)))
    names = _varying([told for told, _ in found])
    points: dict[str, list[Point]] = {}
    labels: dict[str, str] = {}
    for told, point in found:
        points.setdefault(_key(told), []).append(point)
        labels[_key(told)] = _label(told, names)
    lines = zip(_distinct(list(labels.values())), points.values(), strict=True)
    return [Line(label, sorted(some, key=lambda p: p.x)) for label, some in lines], nowhere


def _numeric(collection: Collection, results: Results) -> list[str]:
    """Name the options with several numbers among their values, unless these are kept apart."""
    arms = [each.arm for _, compared in results for each in compared]
    found: list[str] = []
    for name in dict.fromkeys(name for arm in arms for name in arm.options):
        numbers = {_number(arm.options.get(name)) for arm in arms} - {None}
        if len(numbers) > 1 and (collection.forced or name not in collection.apart):
            found.append(name)
    return found


def _varying(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the options of which there are several values, plug-ins first; `proposer` always.

    An option that only some have is no difference of its own: they differ in a plug-in.
    """
    found: list[str] = []
    for name in dict.fromkeys(name for table in tables for name in table):
        having = [table for table in tables if name in table]
        several = len({_key(table[name]) for table in having}) > 1
        if name in PLUG_INS:
            several = several or name == "proposer" or len(having) < len(tables)
        found += [name] if several else []
    return sorted(found, key=lambda name: PLUG_INS.index(name) if name in PLUG_INS else 99)


def _label(told: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(part(name, _cut(told[name])) for name in names if told.get(name) is not None)


def _distinct(labels: Sequence[str]) -> list[str]:
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


def _by_depth(results: Results) -> Iterator[Plot]:
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
                    if _known(row)
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
            f"{words[0].upper() + words[1:]}, one line for each arm. {DEFINITIONS[metric]}",
            kind=DEPTHS,
        )
        yield from _drawn(frame, [line for line in lines if line.points], [])


# How they are drawn.


def _drawn(frame: Frame, lines: Sequence[Line], nowhere: Sequence[str]) -> Iterator[Plot]:
    """Draw lines, at most ten a plot, all parts in the same scales."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.points[0].setting, []).append(line)
    parts = _packed(list(groups.values()), LINES_PER_PLOT)
    several_settings = frame.kind == DEPTHS and len(groups) > 1  # else labels say them
    beyond = [
        f"{line.label} | {line.points[0].setting}" if several_settings else line.label
        for some in parts[MAX_PARTS:]
        for line in some
    ]
    for number, some in enumerate(parts[:MAX_PARTS], start=1):
        last = number == min(len(parts), MAX_PARTS)
        title, told = _titled(frame, some, groups, number, min(len(parts), MAX_PARTS))
        name = _part_name(frame.name, number)
        figure, axes = _figure(name, [line.label for line in told], PANEL, joined=True)
        for index, line in enumerate(told):
            _draw_line(
                axes, line, index, index - (len(told) - 1) / 2 if frame.kind != MEASURED else 0.0
            )
        if frame.reference is not None:
            axes.axhline(frame.reference, color=INK, linestyle=":", linewidth=1.0)
        _scale(axes, frame, lines)
        axes.set_xlabel(frame.x_label)
        axes.set_ylabel(frame.y_label)
        rows = [point.row for line in some for point in line.points]
        caption = [frame.text, _prompts(rows), RESAMPLED]
        if last:
            caption += [_named("Not drawn, for want of room:", beyond)]
            caption += [_named("Without two values to join:", list(dict.fromkeys(nowhere)))]
        yield Plot(name, frame.group, number, title, _joined(caption), figure)


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


def _figure(name: str, labels: Sequence[str], height: float, joined: bool) -> tuple[Figure, Axes]:
    """Make room for a panel and, below it, a legend that no line of text sticks out of."""
    wrapped = ["\n".join(textwrap.wrap(label, LEGEND_CHARACTERS)) for label in labels]
    num_broken = sum(label.count("\n") for label in wrapped)
    figure, axes = _panel(name, height, LEGEND_ROW * len(labels) + LEGEND_LINE * num_broken + 0.08)
    _legend(figure, [_handle(index, joined) for index in range(len(labels))], wrapped)
    return figure, axes


def _panel(name: str, height: float, below: float, left: float = LEFT) -> tuple[Figure, Axes]:
    total = TOP + height + BOTTOM + below
    figure = Figure(figsize=(WIDTH, total), label=name)
    width = (WIDTH - left - RIGHT) / WIDTH
    return figure, figure.add_axes((left / WIDTH, (below + BOTTOM) / total, width, height / total))


def _legend(
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


def _look(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes: no two of ten lines share two of these."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markeredgecolor": INK,  # pale colours alone would be lost on white
        "markeredgewidth": 0.6,
    }


def _handle(index: int, joined: bool = True) -> Line2D:
    look = {**_look(index), **({} if joined else {"linestyle": "none"})}
    return Line2D([], [], **look)


def _draw_line(axes: Axes, line: Line, index: int, shift: float) -> None:
    """Draw points and intervals, `shift` steps aside, so that they do not hide each other."""
    look = _look(index)
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
    values = [v for point in points for v in _ends(point.row)]
    values += [] if frame.reference is None else [frame.reference]
    axes.set_ylim(*_padded(min(values), max(values), 0.06))


def _scale_x(axes: Axes, values: Sequence[float], kind: str) -> None:
    """Take logarithms where values span much, and put ticks where values are."""
    wide = kind != DEPTHS and values[0] > 0 and values[-1] / values[0] >= 8
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
        axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:.6g}" for tick in shown]))
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


# Where the seconds go.


@dataclass(frozen=True)
class Bar:
    """What a step of an arm takes, in milliseconds."""

    label: str
    setting: str
    parts: Mapping[str, float]
    whole: Numbers


def _step_seconds(results: Results) -> Iterator[Plot]:
    """Draw how long a step takes and what of it, one bar for each arm."""
    groups = [
        [_bar(each.arm, setting) for each in compared if each.arm.tally.total("decode_seconds")]
        for setting, compared in results
    ]
    parts = _packed(groups, BARS_PER_PLOT)
    beyond = [_bar_label(bar, len(results)) for some in parts[MAX_PARTS:] for bar in some]
    parts = parts[:MAX_PARTS]
    longest = max((max(_ends(bar.whole)) for some in parts for bar in some), default=0.0)
    for number, some in enumerate(parts, start=1):
        name = _part_name("step_seconds", number)
        settings = list(dict.fromkeys(bar.setting for bar in some))
        title = "Where the time of a step goes"
        title += f", {settings[0]}" if len(results) > 1 and len(settings) == 1 else ""
        title += f" (part {number} of {len(parts)})" if len(parts) > 1 else ""
        caption = [
            "Milliseconds of one step (one verifier call) of one request, prefill excluded:"
            " drafting (propose), the verifier's forward (verify) and the rest (other). The number"
            " is the whole, the thin line its interval.",
            DEFINITIONS["time_shares"],
            _prompts([bar.whole for bar in some]),
            RESAMPLED,
            _named("Not drawn, for want of room:", beyond) if number == len(parts) else "",
        ]
        figure = _bars(name, some, longest, len(settings))
        yield Plot(name, "Time of a step", number, title, _joined(caption), figure)


def _bar(arm: Arm, setting: Setting) -> Bar:
    num_steps = arm.tally.total("num_steps")
    parts = {
        kind: 1000 * arm.tally.total(f"{kind}_seconds") / num_steps for kind in PARTS_OF_A_STEP
    }
    whole: dict[str, Any] = dict(arm.tally.ratio("decode_seconds", "num_steps").to_row())
    for name in ("value", "low", "high"):
        whole[name] = None if whole[name] is None else 1000 * whole[name]
    return Bar(arm.label, setting.label, parts, whole)


def _bar_label(bar: Bar, num_settings: int) -> str:
    return f"{bar.label} | {bar.setting}" if num_settings > 1 else bar.label


def _bars(name: str, bars: Sequence[Bar], longest: float, num_settings: int) -> Figure:
    """Draw bars with their labels above them: beside them they would take half of the width."""
    figure, axes = _panel(name, BAR * len(bars) + 0.1, 0.31, left=0.16)
    for index, bar in enumerate(bars):
        label = textwrap.shorten(_bar_label(bar, num_settings), 66, placeholder=" ...")
        _draw_bar(axes, bar, -index, label)
    axes.set_ylim(-len(bars) + 0.6, 0.62)
    axes.set_xlim(0, 1.22 * longest)
    axes.set_xlabel("time of a step (milliseconds)")
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)
    handles = [
        Patch(facecolor=colour, edgecolor=INK, linewidth=0.4, hatch=hatch)
        for colour, hatch in PARTS_OF_A_STEP.values()
    ]
    _legend(figure, handles, list(PARTS_OF_A_STEP), num_columns=3)
    return figure


def _draw_bar(axes: Axes, bar: Bar, y: float, label: str) -> None:
    left = 0.0
    for kind, (colour, hatch) in PARTS_OF_A_STEP.items():
        box = axes.barh(y, bar.parts[kind], 0.36, left, color=colour, hatch=hatch)
        box[0].set(edgecolor=INK, linewidth=0.4)
        left += bar.parts[kind]
    if bar.whole["low"] is not None:
        axes.hlines(y, bar.whole["low"], bar.whole["high"], color=INK, linewidth=1.0)
    for text, x, above, right in (
        (f"{bar.whole['value']:.3g} ms", max(_ends(bar.whole)), 0.0, 4),
        (label, 0.0, 0.34, 1),
    ):
        axes.annotate(
            text, (x, y + above), (right, 0), textcoords="offset points", va="center", fontsize=8
        )


# What speed costs.


@dataclass(frozen=True)
class Spot:
    """An arm between two axes."""

    arm: Arm
    x: Numbers
    y: Numbers


def _frontiers(results: Results) -> Iterator[Plot]:
    """Draw, for each setting, speed against quality; block efficiency where none is lost."""
    parts = [(setting, compared) for setting, compared in results if len(compared) > 1]
    for number, (setting, compared) in enumerate(parts[:MAX_PARTS], start=1):
        lossy = any(not each.arm.lossless for each in compared)
        speed = _speed(compared)
        spots, nowhere = _spots(compared, speed, lossy)
        if len(spots) < 2:
            continue
        name = _part_name("quality_by_speed" if lossy else "block_efficiency_by_speed", number)
        title = "Speed and quality" if lossy else "Block efficiency and speed"
        title += f", {setting.label}" if len(results) > 1 else ""
        figure, notes = _scatter(name, spots, lossy, speed)
        metric = "total_variation" if lossy else "block_efficiency"
        what = (
            "What speed costs: further right is faster, further down is closer to the verifier's"
            " law; lossless arms are at 0."
            if lossy
            else "Whether accepted tokens become speed: one mark for each arm."
        )
        caption = [
            what,
            *notes,
            f"{metric}: {DEFINITIONS[metric]} {speed}: {DEFINITIONS[speed]}",
            _prompts([row for spot in spots for row in (spot.x, spot.y)]),
            RESAMPLED,
            _named("Without a number on one of the axes:", nowhere),
        ]
        if number == MAX_PARTS:
            caption.append(_named("Not drawn:", [each.label for each, _ in parts[MAX_PARTS:]]))
        yield Plot(name, "Speed and quality", max(1, number - 1), title, _joined(caption), figure)


def _spots(compared: Sequence[Compared], speed: str, lossy: bool) -> tuple[list[Spot], list[str]]:
    found: list[Spot] = []
    nowhere: list[str] = []
    for each in compared:
        x = each.summary.get(speed)
        if speed == "speedup" and each.arm.is_baseline:
            x = {"value": 1.0, "low": None, "high": None, "n": each.arm.tally.num_prompts}
        y = each.summary.get("total_variation" if lossy else "block_efficiency")
        if lossy and each.arm.lossless:
            y = {"value": 0.0, "low": None, "high": None, "n": each.arm.tally.num_prompts}
        if x is not None and y is not None and _known(x) and _known(y):
            found.append(Spot(each.arm, x, y))
        else:
            nowhere.append(each.arm.label)
    return found, nowhere


def _scatter(name: str, spots: Sequence[Spot], lossy: bool, speed: str) -> tuple[Figure, list[str]]:
    families = _families(spots)
    room = LINES_PER_PLOT - (len(families) > LINES_PER_PLOT)
    others = list(families)[room:]
    labels = [*list(families)[:room], *(["others"] if others else [])]
    figure, axes = _figure(name, labels, PANEL + 0.3, joined=False)
    for index, label in enumerate(families):
        for spot in families[label]:
            _draw_spot(axes, spot, min(index, len(labels) - 1))
    notes = [_named("Others:", others)]
    if lossy:
        front = _undominated(spots)
        x, y = [spot.x["value"] for spot in front], [spot.y["value"] for spot in front]
        axes.plot(x, y, color=INK, linestyle=":", linewidth=1.0, zorder=1)
        told = "Joined by dots, those than which none is both faster and closer:"
        notes.append(_named(told, [spot.arm.label for spot in front]))
    faster = "speedup (ratio to proposer=none)" if speed == "speedup" else "tokens per second"
    axes.set_xlabel(faster)
    axes.set_ylabel("total variation (0 to 1)" if lossy else "tau (tokens per verifier call)")
    return figure, notes


def _families(spots: Sequence[Spot]) -> dict[str, list[Spot]]:
    """Group by arm, or by plug-ins where arms are more than can be told apart by their marks."""
    found: dict[str, list[Spot]] = {}
    if len(spots) <= LINES_PER_PLOT:
        for spot in spots:
            found.setdefault(spot.arm.label, []).append(spot)
        return found
    tables = [{n: v for n, v in spot.arm.options.items() if n in PLUG_INS} for spot in spots]
    names = _varying(tables)
    for spot, table in zip(spots, tables, strict=True):
        found.setdefault(_label(table, names), []).append(spot)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _draw_spot(axes: Axes, spot: Spot, index: int) -> None:
    look = {**_look(index), "linestyle": "none"}
    x, y = spot.x["value"], spot.y["value"]
    faint: dict[str, Any] = {"color": look["color"], "linewidth": 0.9, "alpha": 0.6, "zorder": 1}
    if spot.x["low"] is not None:
        axes.hlines(y, spot.x["low"], spot.x["high"], **faint)
    if spot.y["low"] is not None:
        axes.vlines(x, spot.y["low"], spot.y["high"], **faint)
    axes.plot([x], [y], **look)


def _undominated(spots: Sequence[Spot]) -> list[Spot]:
    """Return the arms than which none is both faster and closer, slowest first."""
    found: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (-s.x["value"], s.y["value"])):
        if not found or spot.y["value"] < found[-1].y["value"]:
            found.append(spot)
    return found[::-1]


# Small things.


def _packed(groups: Sequence[Sequence[T]], size: int) -> list[list[T]]:
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


def _full_label(arm: Arm, setting: str, num_settings: int) -> str:
    return f"{arm.label} | {setting}" if num_settings > 1 else arm.label


def _part_name(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def _key(value: Any) -> str:
    return repr(sorted(value.items()) if isinstance(value, Mapping) else value)


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _known(row: Numbers | None) -> bool:
    return row is not None and row["value"] is not None


def _ends(row: Numbers) -> list[float]:
    return [row[name] for name in ("value", "low", "high") if row[name] is not None]


def _prompts(rows: Sequence[Numbers]) -> str:
    low, high = min(row["n"] for row in rows), max(row["n"] for row in rows)
    if low < high:
        return f"n = {low} to {high} prompts."
    return f"n = {low} prompt{'s' if low != 1 else ''}."


def _named(what: str, labels: Sequence[str]) -> str:
    if not labels:
        return ""
    more = f"; and {len(labels) - MAX_NAMED} more" if len(labels) > MAX_NAMED else ""
    return f"{what} {'; '.join(labels[:MAX_NAMED])}{more}."


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
