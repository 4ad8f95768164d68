"""The table at the end of a comparison: every number with its interval, and what it means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdec.metrics import DEFINITIONS

SHOWN = ("block_efficiency", "acceptance_rate", "acceptance_at_depth", "speedup")


@dataclass(frozen=True)
class Row:
    """One arm: its names, and its `summary.json`."""

    arm: str
    rule: str
    summary: Mapping[str, Any]


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print one table with definitions below it, in colour on a terminal."""
    table = comparison(rows, title)
    console = Console()
    # Cut-off numbers are worse than broken lines; pipes and files claim to be 80 wide.
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console = Console(width=max(needed, console.width))
    console.print(table)
    console.print("[dim]Intervals: 95 %, bootstrap over prompts.[/dim]")
    for name in SHOWN:
        console.print(f"[dim]{name}: {DEFINITIONS[name]}[/dim]", highlight=False)


def comparison(rows: Sequence[Row], title: str) -> Table:
    """Lay the arms out, one a row."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_lines=True)
    table.add_column("proposer\n[dim]rule[/dim]", no_wrap=True)
    for name in (
        "block\nefficiency",
        "acceptance\nrate",
        "acceptance\nat depth",
        "tokens/s",
        "speedup",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("lossless", no_wrap=True)
    table.add_column("same text\nas none\nat T=0", no_wrap=True)
    for row in rows:
        summary = row.summary
        table.add_row(
            f"{row.arm}\n[dim]{row.rule}[/dim]",
            estimate(summary["block_efficiency"]),
            estimate(summary["acceptance_rate"]),
            by_depth(summary["acceptance_at_depth"]),
            estimate(summary["tokens_per_second"], digits=1),
            estimate(summary.get("speedup")),
            "yes" if summary["lossless"] else "no",
            agreement(summary.get("same_text")),
        )
    return table


def estimate(row: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Write a number above its interval; a dash where there is none."""
    if row is None or row["value"] is None:
        return "-"
    value = f"{row['value']:.{digits}f}"
    if row["low"] is None:
        return value
    return f"{value}\n[dim]{row['low']:.{digits}f}-{row['high']:.{digits}f}[/dim]"


def by_depth(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write one line per depth."""
    lines: list[str] = []
    for depth, row in rows.items():
        if row["value"] is not None:
            interval = (
                "" if row["low"] is None else f" [dim]{row['low']:.2f}-{row['high']:.2f}[/dim]"
            )
            lines.append(f"{depth}: {row['value']:.2f}{interval}")
    return "\n".join(lines) or "-"


def agreement(same_text: Mapping[str, int] | None) -> str:
    """Write yes, or how many texts agree; a dash where the question makes no sense (T > 0)."""
    if same_text is None:
        return "-"
    if same_text["equal"] == same_text["of"]:
        return "yes"
    return f"no: {same_text['equal']} of {same_text['of']}"
