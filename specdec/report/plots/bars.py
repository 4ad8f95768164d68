"""Where the seconds of a step go, one bar for each arm."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from specdec.metrics import DEFINITIONS
from specdec.metrics.speed import TOO_CHEAP
from specdec.report.collection import ReportedArm, Setting
from specdec.report.comparison import Compared
from specdec.report.plots import limits
from specdec.report.plots.canvas import BAR, INK, Plot, legend, panel
from specdec.report.plots.captions import (
    RESAMPLED,
    Numbers,
    ends_of,
    full_label,
    in_one,
    listed,
    packed,
    part_name,
    prompts_of,
)
from specdec.report.plots.lines import Results

PARTS_OF_A_STEP = {  # colour and hatch
    "propose": ("#e69f00", "///"),
    "verify": ("#0072b2", ""),
    "other": ("#cc79a7", "xxx"),
}


@dataclass(frozen=True)
class Bar:
    """What a step of an arm takes, in milliseconds."""

    label: str
    setting: str
    parts: Mapping[str, float]
    whole: Numbers


def step_seconds(results: Results) -> Iterator[Plot]:
    """Draw how long a step takes and what of it, one bar for each arm."""
    groups = [
        [_bar(each.arm, setting) for each in compared if _is_sound(each)]
        for setting, compared in results
    ]
    unsound = [
        full_label(each.arm, setting.label, len(results))
        for setting, compared in results
        for each in compared
        if each.summary["speedup"].get("reason") == TOO_CHEAP
    ]
    parts = packed(groups, limits.BARS_PER_PLOT)
    beyond = [_bar_label(bar, len(results)) for some in parts[limits.MAX_PARTS :] for bar in some]
    parts = parts[: limits.MAX_PARTS]
    longest = max((max(ends_of(bar.whole)) for some in parts for bar in some), default=0.0)
    for number, some in enumerate(parts, start=1):
        name = part_name("step_seconds", number)
        settings = list(dict.fromkeys(bar.setting for bar in some))
        title = "Where the time of a step goes"
        title += f", {settings[0]}" if len(results) > 1 and len(settings) == 1 else ""
        title += f" (part {number} of {len(parts)})" if len(parts) > 1 else ""
        caption = [
            "Milliseconds of one step (one verifier call) of one request, prefill excluded:"
            " drafting (propose), the verifier's forward (verify) and the rest (other). The number"
            " is the whole, the thin line its interval.",
            DEFINITIONS["time_shares"],
            prompts_of([bar.whole for bar in some]),
            RESAMPLED,
            listed("Not drawn, for want of room:", beyond) if number == len(parts) else "",
            listed("Not drawn, timings not comparable:", unsound) if number == len(parts) else "",
        ]
        figure = _bars(name, some, longest, len(settings))
        yield Plot(name, "Time of a step", number, title, in_one(caption), figure)


def _is_sound(each: Compared) -> bool:
    """Whether steps were timed, as far as is known on the same machine all along."""
    timed = each.arm.tally.total("decode_seconds") > 0
    return timed and each.summary["speedup"].get("reason") != TOO_CHEAP


def _bar(arm: ReportedArm, setting: Setting) -> Bar:
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
    figure, axes = panel(name, BAR * len(bars) + 0.1, 0.31, left=0.16)
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
    legend(figure, handles, list(PARTS_OF_A_STEP), num_columns=3)
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
        (f"{bar.whole['value']:.3g} ms", max(ends_of(bar.whole)), 0.0, 4),
        (label, 0.0, 0.34, 1),
    ):
        axes.annotate(
            text, (x, y + above), (right, 0), textcoords="offset points", va="center", fontsize=8
        )
