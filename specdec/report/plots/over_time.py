"""Block efficiency along the prompts, in their order: what a proposer learns, and forgets."""

from collections.abc import Iterator, Sequence

from specdec.metrics import DEFINITIONS, block_efficiency
from specdec.report.collection import ReportedArm
from specdec.report.plots.canvas import Plot
from specdec.report.plots.captions import is_known
from specdec.report.plots.drawing import PLACES, Frame, Line, Point, drawn
from specdec.report.plots.lines import Results
from specdec.results.run_dir import read_traces

POINTS = 12  # of a line, as far as there are prompts


def over_time(results: Results) -> Iterator[Plot]:
    """Draw one line for each arm of a setting in which a proposer learns."""
    lines: list[Line] = []
    for setting, compared in results:
        drafting = [each.arm for each in compared if not each.arm.is_baseline]
        if any("online" in arm.options for arm in drafting):
            lines += [Line(arm.label, _points(arm, setting.label)) for arm in drafting]
    frame = Frame(
        "tau_over_time",
        "Over time",
        "Block efficiency along the prompts",
        "prompts decoded before (the middle of each group)",
        "tau (tokens per verifier call)",
        "One line for each arm; each point is of some neighbouring prompts, in the order in which"
        f" they were decoded. {DEFINITIONS['block_efficiency']}",
        kind=PLACES,
    )
    yield from drawn(frame, [line for line in lines if line.points], [])


def _points(arm: ReportedArm, setting: str) -> list[Point]:
    """Group an arm's prompts as they were decoded."""
    order = _order(arm)
    size = max(1, -(-len(order) // POINTS))
    points: list[Point] = []
    for start in range(0, len(order), size):
        group = set(order[start : start + size])
        row = block_efficiency(arm.tally.where([name in group for name in arm.tally.prompt_ids]))
        if is_known(row.to_row()):
            points.append(Point(start + len(group) / 2, row.to_row(), setting, arm))
    return points


def _order(arm: ReportedArm) -> Sequence[str]:
    """Return the prompts in order; a replayed arm has no traces, and none."""
    run = next(iter(arm.runs.values()))
    if not (run.path / "traces.jsonl").exists():
        return []
    return list(dict.fromkeys(trace.prompt_id for trace in read_traces(run.path)))
