"""The table at the end of a comparison: every number with its interval, and what it means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdec.metrics import DEFINITIONS, MIN_PROMPTS
from specdec.report.cells import (
    NOTHING,
    Numbers,
    agreement,
    by_depth,
    efficiency,
    estimate,
    faster,
    in_line,
    losslessness,
    overlap_and_bound,
)

INTERVALS = (
    "Intervals: 95 %, bootstrap over prompts; those of a difference and its ratio at the level of"
    " Holm's test, so that they hold 0 (and 1) if and only if the arm is marked =."
)
TIE = (
    "=: not resolved from the reference arm (the best one, unless another is named), p >= 0.05,"
    " paired over prompts, adjusted by Holm; at a speedup: from the fastest."
)


@dataclass(frozen=True)
class ArmRow:
    """One arm: its names, and its `summary.json`."""

    arm: str
    rule: str
    summary: Numbers


def print_table(rows: Sequence[ArmRow], title: str) -> None:
    """Print the arms, what judges said, and definitions below, in colour on a terminal."""
    print_tables({title: rows})


def print_tables(by_title: Mapping[str, Sequence[ArmRow]], explained: bool = True) -> None:
    """Print several tables, and below them, once, what their numbers mean, if `explained`."""
    rows = [row for each in by_title.values() for row in each]
    columns = filled(rows)
    tables: list[Table] = []
    for title, each in by_title.items():
        tables.append(comparison(each, columns, title))
        if any(row.summary.get("judged") for row in each):
            tables.append(judgements(each))
    console = Console()
    # Cut-off numbers are worse than broken lines; pipes and files claim to be 80 wide.
    whole = console.options.update(max_width=1000)
    needed = max(console.measure(table, options=whole).maximum for table in tables)
    console = Console(width=max(needed, console.width))
    for table in tables:
        console.print(table)
    console.print(f"[dim]{INTERVALS}[/dim]", highlight=False)
    references = {row.summary["reference"] for row in rows if "reference" in row.summary}
    for reference in sorted(references):
        console.print(f"[dim]reference arm: {reference}[/dim]", highlight=False)
    if any(row.summary.get(name) for row in rows for name in ("tie", "tie_in_speed")):
        console.print(f"[dim]{TIE}[/dim]", highlight=False)
    for reason in reasons([row.summary for row in rows]):
        console.print(f"[dim]{reason}[/dim]", highlight=False)
    note = too_few([row.summary for row in rows])
    if note is not None and len(rows) > 1:
        console.print(f"[dim]{note}[/dim]", highlight=False)
    for name in defined(rows, columns) if explained else ():
        console.print(f"[dim]{name}: {DEFINITIONS[name]}[/dim]", highlight=False)


@dataclass(frozen=True)
class MetricColumn:
    """A title, what to write for one arm, and the metrics that a reader may want explained."""

    title: str
    cell: Callable[[Numbers], str]
    metrics: tuple[str, ...]
    justify_right: bool = True


def comparison(rows: Sequence[ArmRow], columns: Sequence[MetricColumn], title: str) -> Table:
    """Lay the arms out, one a row."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_lines=True)
    table.add_column("proposer\n[dim]rule[/dim]", no_wrap=True)
    for column in columns:
        justify = "right" if column.justify_right else "left"
        table.add_column(column.title, justify=justify, no_wrap=True)
    for row in rows:
        cells = [column.cell(row.summary) for column in columns]
        table.add_row(f"{broken(row.arm)}\n[dim]{row.rule}[/dim]", *cells)
    return table


def broken(name: str, width: int = 32) -> str:
    """Break the long name of an arm behind some of its commas, never within an override."""
    lines = [""]
    for part in name.replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def judgements(rows: Sequence[ArmRow]) -> Table:
    """Lay out what the judges of each arm would have accepted of the very same candidates."""
    title = "the same candidates, shown to other rules"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("candidates and text of", "judged by"):
        table.add_column(name, no_wrap=True)
    for name in ("E[A] per step", "difference to the deciding rule"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        judged: Mapping[str, Numbers] = row.summary.get("judged") or {}
        own = in_line(row.summary["expected_accepted"]) if judged else NOTHING
        cells = [(f"{row.rule} (decides)", own, NOTHING)] if judged else []
        for name, each in judged.items():
            accepted = in_line(each["expected_accepted"])
            cells.append((name, accepted, in_line(each["difference"], signed=True)))
        for number, cell in enumerate(cells):
            table.add_row(broken(row.arm) if number == 0 else "", *cell)
    return table


def filled(rows: Sequence[ArmRow]) -> list[MetricColumn]:
    """Return the columns that at least one arm has something for."""
    return [each for each in COLUMNS if any(each.cell(row.summary) != NOTHING for row in rows)]


def defined(rows: Sequence[ArmRow], columns: Sequence[MetricColumn]) -> list[str]:
    """Return the metrics of these columns that at least one arm has."""
    shown = {name for column in columns for name in column.metrics} | {"judged"}
    return [n for n in SHOWN if n in shown and any(row.summary.get(n) for row in rows)]


def too_few(summaries: Sequence[Numbers]) -> str | None:
    """Say of how few prompts arms are; None if there are enough to compare them."""
    numbers = [each["num_prompts"] for each in summaries if "num_prompts" in each]
    few = sorted({number for number in numbers if number < MIN_PROMPTS})
    if not few:
        return None
    range_ = f"{few[0]} to {few[-1]}" if len(few) > 1 else f"{few[0]}"
    name = "prompt" if few == [1] else "prompts"
    fewer = f"fewer than {MIN_PROMPTS} have no intervals, no tests and no marks"
    return f"n = {range_} {name}: too few to resolve differences ({fewer})"


def reasons(summaries: Sequence[Numbers]) -> list[str]:
    """Say why there is no speedup, each reason once."""
    rows = [summary.get("speedup") or {} for summary in summaries]
    return list(dict.fromkeys(row["reason"] for row in rows if row.get("reason")))


COLUMNS = (
    MetricColumn("block\nefficiency", efficiency, ("block_efficiency", "expected_accepted")),
    MetricColumn(
        "difference\nto reference\n(Holm's level)",
        lambda summary: estimate(summary.get("difference"), signed=True),
        ("difference",),
    ),
    MetricColumn("ratio to\nreference", lambda summary: estimate(summary.get("ratio")), ("ratio",)),
    MetricColumn(
        "acceptance\nrate",
        lambda summary: estimate(summary["acceptance_rate"]),
        ("acceptance_rate",),
    ),
    MetricColumn(
        "acceptance\nat depth",
        lambda summary: by_depth(summary["acceptance_at_depth"]),
        ("acceptance_at_depth",),
    ),
    MetricColumn("overlap and\nroot bound", overlap_and_bound, ("overlap", "transport_bound")),
    MetricColumn(
        "experts\nper layer\nand step",
        lambda summary: estimate(summary.get("experts_touched")),
        ("experts_touched",),
    ),
    MetricColumn("tokens/s", lambda summary: estimate(summary["tokens_per_second"], digits=1), ()),
    MetricColumn("speedup", faster, ("speedup",)),
    MetricColumn(
        "regret",
        lambda summary: estimate(summary.get("regret"), digits=3, signed=True),
        ("regret",),
    ),
    MetricColumn("lossless", losslessness, ("total_variation", "kl"), justify_right=False),
    MetricColumn(
        "same text\nas none\nat T=0",
        lambda summary: agreement(summary.get("same_text")),
        (),
        justify_right=False,
    ),
)
SHOWN = (*(name for column in COLUMNS for name in column.metrics), "judged")
