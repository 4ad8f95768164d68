"""Figures of a folder of runs, each with a caption: what it shows, of how many prompts."""

import matplotlib

from specdec.report.collection import Collection
from specdec.report.plots.bars import step_seconds
from specdec.report.plots.canvas import STYLE, Plot
from specdec.report.plots.experts import by_tokens
from specdec.report.plots.files import save, svg
from specdec.report.plots.frontier import frontiers
from specdec.report.plots.lines import Results, against_options, against_size, by_depth
from specdec.report.plots.over_time import over_time

__all__ = ["Plot", "figures", "save", "svg"]


def figures(collection: Collection, results: Results) -> dict[str, Plot]:
    """Draw all that these runs allow, by name, in the order in which they are read.

    A kind of plot that would say nothing (no option varies, nothing was timed) is left out.
    """
    with matplotlib.rc_context(STYLE):
        found = [
            *frontiers(results),
            *against_options(collection, results),
            *against_size(results),
            *by_depth(results),
            *by_tokens(results),
            *over_time(results),
            *step_seconds(results),
        ]
    return {plot.name: plot for plot in found}
