"""A figure as an element of a page, and as files."""

import io
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from specdec.core.jsonl import make_folder, write_bytes, write_text
from specdec.report.plots.canvas import INK, STYLE, Plot
from specdec.report.plots.captions import path_safe


def svg(figure: Figure) -> str:
    """Return a figure as an element for a page, in the colours of the text around it.

    Ids begin with the figure's label, so that several figures fit into one page.
    """
    text = _written(figure)
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Rules within a page would hold for all of it.
    text = re.sub(r"<(style|metadata).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", '<svg stroke-linejoin="round"', 1)
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif")
    needed = set(re.findall(r'(?:href="#|url\(#)([^")]*)', text))
    text = re.sub(r' id="([^"]*)"', lambda id_: id_[0] if id_[1] in needed else "", text)
    prefix = path_safe(str(figure.get_label()))
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def save(plots: Mapping[str, Plot], folder: Path) -> list[Path]:
    """Write `plots/NAME.svg` and `plots/NAME.png` into a folder, titles included."""
    target = folder / "plots"
    make_folder(target)
    written: list[Path] = []
    for name, plot in plots.items():
        vector, pixels = target / f"{name}.svg", target / f"{name}.png"
        with matplotlib.rc_context(STYLE), _titled_figure(plot) as figure:
            write_text(vector, _written(figure))
            write_bytes(pixels, _drawn(figure))
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


def _drawn(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    nobody = {"Software": None}
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata=nobody)
    return buffer.getvalue()


def _written(figure: Figure) -> str:
    buffer = io.StringIO()
    parameters: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": str(figure.get_label()),
    }
    nobody = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**STYLE, **parameters}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nobody)
    return buffer.getvalue()
