"""Experts that a forward takes against the tokens that it reads: why larger trees cost more."""

from collections.abc import Iterator

from specdec.metrics import DEFINITIONS
from specdec.report.plots.canvas import Plot
from specdec.report.plots.captions import is_known
from specdec.report.plots.drawing import MEASURED, Frame, Line, Point, drawn
from specdec.report.plots.lines import Results


def by_tokens(results: Results) -> Iterator[Plot]:
    """Draw one line for each arm whose experts were counted."""
    lines = [
        Line(
            each.arm.label,
            [
                Point(float(number), row, setting.label, each.arm)
                for number, row in each.summary.get("experts_at_tokens", {}).items()
                if is_known(row)
            ],
        )
        for setting, compared in results
        for each in compared
    ]
    frame = Frame(
        "experts_by_tokens",
        "Experts",
        "Distinct experts per layer and step",
        "tokens that the forward read (roots and draft tokens)",
        "distinct experts of a layer (mean)",
        "One line for each arm. The weights of an expert are read once, however many tokens take"
        f" it. {DEFINITIONS['experts_touched']}",
        kind=MEASURED,
    )
    yield from drawn(frame, [line for line in lines if line.points], [])
