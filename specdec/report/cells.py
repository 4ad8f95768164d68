"""What one cell of a table says: a number with its interval, or in few words why there is none."""

from collections.abc import Mapping
from typing import Any

NOTHING = "-"
Numbers = Mapping[str, Any]


def efficiency(summary: Numbers) -> str:
    """Write block efficiency and, where something was drafted, E[A]."""
    expected = summary.get("expected_accepted")
    cell = _marked(estimate(summary["block_efficiency"]), summary.get("tie"))
    if expected is None or expected["value"] is None or summary.get("num_drafted") == 0:
        return cell
    return f"{cell}\n[dim]E\\[A] {expected['value']:.2f}[/dim]"


def faster(summary: Numbers) -> str:
    """Write the speedup, or why there is none."""
    return _marked(estimate(summary.get("speedup")), summary.get("tie_in_speed"))


def _marked(cell: str, tie: bool | None) -> str:
    if not tie:
        return cell
    return cell.replace("\n", " =\n", 1) if "\n" in cell else f"{cell} ="


def overlap_and_bound(summary: Numbers) -> str:
    """Write the overlap of sampled candidates, and what they allow at best at the root."""
    bound = summary.get("transport_bound")
    if bound is None:
        return NOTHING
    return f"{estimate(summary['overlap'])}\n[dim]root bound {bound['value']:.2f}[/dim]"


def losslessness(summary: Numbers) -> str:
    """Write yes, or how far from the verifier's distribution the tokens were emitted."""
    if summary["lossless"]:
        return "yes"
    variation, kl = summary.get("total_variation"), summary.get("kl")
    if variation is None or kl is None:
        return "no"
    return f"no: TV {variation['value']:#.2g}, KL {kl['value']:#.2g}"


def estimate(row: Numbers | None, digits: int = 2, signed: bool = False) -> str:
    """Write a number above its interval; a dash, or why, where there is none."""
    value, interval = _texts(row, digits, signed)
    return f"{value}\n[dim]{interval}[/dim]" if interval else value


def in_line(row: Numbers | None, digits: int = 3, signed: bool = False) -> str:
    """Write a number and then its interval; a dash where there is none."""
    value, interval = _texts(row, digits, signed)
    return f"{value} [dim]({interval})[/dim]" if interval else value


def in_words(name: str) -> str:
    """Write the name of a metric as a title: acceptance rate."""
    return name.replace("_", " ")


def one_line(row: Numbers | None, digits: int = 3, signed: bool = False) -> str:
    """Write a number and then its interval, without markup; a dash where there is none."""
    value, interval = _texts(row, digits, signed)
    return f"{value} ({interval})" if interval else value


def unknown(row: Numbers | None) -> str:
    """Write a dash, or in few words why there is no number."""
    reason = None if row is None else row.get("reason")
    return NOTHING if reason is None else reason.partition(":")[0]


def _texts(row: Numbers | None, digits: int, signed: bool) -> tuple[str, str]:
    if row is None or row["value"] is None:
        return unknown(row), ""
    form, between = (f"+.{digits}f", " to ") if signed else (f".{digits}f", "-")
    interval = "" if row["low"] is None else f"{row['low']:{form}}{between}{row['high']:{form}}"
    return f"{row['value']:{form}}", interval


def by_depth(rows: Mapping[str, Numbers]) -> str:
    """Write one line per depth."""
    lines: list[str] = []
    for depth, row in rows.items():
        if row["value"] is not None:
            interval = (
                "" if row["low"] is None else f" [dim]{row['low']:.2f}-{row['high']:.2f}[/dim]"
            )
            lines.append(f"{depth}: {row['value']:.2f}{interval}")
    return "\n".join(lines) or NOTHING


def agreement(same_text: Mapping[str, int] | None) -> str:
    """Write yes, or how many texts agree; a dash where the question makes no sense (T > 0)."""
    if same_text is None:
        return NOTHING
    if same_text["equal"] == same_text["of"]:
        return "yes"
    return f"no: {same_text['equal']} of {same_text['of']}"
