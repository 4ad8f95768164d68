"""Tables of arms, as cells: what they say, and what they are sorted by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specdec.metrics import MIN_PROMPTS
from specdec.report.cells import unknown
from specdec.report.collection import Setting
from specdec.report.comparison import Compared
from specdec.report.table import reasons, too_few

Numbers = Mapping[str, Any]  # an estimate: value, low, high, n

NOTHING = "-"


@dataclass(frozen=True)
class Cell:
    """What one place of a table says, and what it is sorted by."""

    text: str = NOTHING
    interval: str = ""
    n: int | None = None  # prompts, where they are fewer than the table says
    notes: tuple[str, ...] = ()  # further lines
    sort: float | None = None  # None goes last
    best: bool = False
    tie: bool = False


@dataclass(frozen=True)
class GridColumn:
    """A title, and the name of what explains it in the glossary."""

    key: str
    title: str


@dataclass(frozen=True)
class GridRow:
    """One arm: how it is called, and a cell for each column."""

    arm: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Grid:
    """A table of arms; their names, the first column, are not among its columns."""

    title: str
    columns: Sequence[GridColumn]
    rows: Sequence[GridRow]
    sorted_by: str = ""  # the key of a column, downwards
    notes: Sequence[str] = ()


def overview(setting: Setting, compared: Sequence[Compared]) -> Grid:
    """Lay out the arms of a setting, the most efficient first, without columns of dashes."""
    columns = {
        column: [cell(each) for each in compared] for column, cell in _columns(compared).items()
    }
    filled = {c: cells for c, cells in columns.items() if any(x.text != NOTHING for x in cells)}
    in_order = sorted(range(len(compared)), key=lambda i: -(_tau(compared[i]) or 0.0))
    rows = [
        GridRow(compared[i].arm.label, [cells[i] for cells in filled.values()]) for i in in_order
    ]
    notes = [f"Reference arm: {label}" for label in _references(compared)]
    summaries = [each.summary for each in compared]
    few = too_few(summaries)
    notes += [f"{note}." for note in ([] if few is None else [few]) + reasons(summaries)]
    return Grid(setting.label, list(filled), rows, "block_efficiency", notes)


def _tau(each: Compared) -> float | None:
    return each.summary["block_efficiency"]["value"]


def _references(compared: Sequence[Compared]) -> list[str]:
    found = [each.summary["reference"] for each in compared if "reference" in each.summary]
    return list(dict.fromkeys(found))


def _columns(compared: Sequence[Compared]) -> dict[GridColumn, Callable[[Compared], Cell]]:
    """Say what stands in a cell, by column."""
    most = max(compared, key=lambda each: _tau(each) or 0.0)
    to = "best" if _references(compared) in ([], [most.arm.label]) else "reference"

    def number(key: str, digits: int = 2, signed: bool = False) -> Callable[[Compared], Cell]:
        def cell(each: Compared) -> Cell:
            return _cell(each.summary.get(key), each.summary["num_prompts"], digits, signed)

        return cell

    def efficiency(each: Compared) -> Cell:
        cell = number("block_efficiency")(each)
        return replace(cell, best=each.summary["best"], tie=bool(each.summary["tie"]))

    def speedup(each: Compared) -> Cell:
        cell, summary = number("speedup")(each), each.summary
        return replace(cell, best=summary["fastest"], tie=bool(summary["tie_in_speed"]))

    return {
        GridColumn("rule", "rule"): _rule,
        GridColumn("block_efficiency", "tau"): efficiency,
        GridColumn("difference", f"difference to {to} (Holm's level)"): number(
            "difference", signed=True
        ),
        GridColumn("acceptance_rate", "acceptance rate"): number("acceptance_rate"),
        GridColumn("overlap", "overlap"): number("overlap"),
        GridColumn("experts_touched", "experts per layer and step"): number("experts_touched"),
        GridColumn("tokens_per_second", "tokens/s"): number("tokens_per_second", 1),
        GridColumn("speedup", "speedup"): speedup,
        GridColumn("regret", "regret"): number("regret", 3, signed=True),
        GridColumn("cost_ratio", "cost ratio"): number("cost_ratio"),
        GridColumn("peak_memory_bytes", "peak memory (GiB)"): _memory,
        GridColumn("num_prompts", "prompts (n)"): lambda each: _count(each.summary["num_prompts"]),
        GridColumn("num_seeds", "seeds"): lambda each: _count(each.summary["num_seeds"]),
    }


def _cell(row: Numbers | None, of: int, digits: int = 2, signed: bool = False) -> Cell:
    """Write a number, its interval, and its n unless that is what the table says anyway."""
    if row is None or row["value"] is None:
        return Cell(unknown(row))
    form, between = (f"+.{digits}f", " to ") if signed else (f".{digits}f", "\u2013")
    interval = "" if row["low"] is None else f"{row['low']:{form}}{between}{row['high']:{form}}"
    return Cell(
        f"{row['value']:{form}}", interval, row["n"] if row["n"] != of else None, sort=row["value"]
    )


def _rule(each: Compared) -> Cell:
    """Name the rule, and say whether its texts have the verifier's distribution."""
    name = each.arm.options.get("verification", "none")
    if each.arm.lossless:
        return Cell(name, notes=("lossless",), sort=0.0)
    cells = {
        short: _cell(each.summary.get(key), each.summary["num_prompts"], digits=3)
        for short, key in (("TV", "total_variation"), ("KL", "kl"))
    }
    notes = [
        f"{short} {cell.text}" + (f" ({cell.interval})" if cell.interval else "")
        for short, cell in cells.items()
        if cell.text != NOTHING
    ]
    return Cell(name, notes=("lossy", *notes), sort=cells["TV"].sort)


def _memory(each: Compared) -> Cell:
    size = each.summary["peak_memory_bytes"]
    return Cell() if size is None else Cell(f"{size / 2**30:.2f}", sort=size)


def _count(number: int) -> Cell:
    return Cell(str(number), sort=number)


def categories(setting: Setting, compared: Sequence[Compared]) -> list[Grid]:
    """Lay out arms by categories of prompts, once for each metric; nothing if there is but one."""
    names = sorted({name for each in compared for name in each.by_category})
    if len(names) < 2:
        return []
    drafting = [each for each in compared if not each.arm.is_baseline]
    found = [_by_category(f"tau, {setting.label}", compared, names, "block_efficiency")]
    if any(_has_speed(each) for each in drafting):
        found.append(_by_category(f"speedup, {setting.label}", drafting, names, "speedup"))
    return found


def _has_speed(each: Compared) -> bool:
    """Whether there is a speedup in any category, or a reason why there is none."""
    rows = [metrics["speedup"] for metrics in each.by_category.values()]
    return any(row.value is not None or row.reason is not None for row in rows)


def _by_category(title: str, compared: Sequence[Compared], names: Sequence[str], key: str) -> Grid:
    columns: list[GridColumn] = []
    cells: list[list[Cell]] = []
    for name in names:
        found = [each.by_category.get(name, {}).get(key) for each in compared]
        most = max((estimate.n for estimate in found if estimate), default=0)
        values = [estimate.value if estimate else None for estimate in found]
        known = [value for value in values if value is not None]
        column = [_cell(estimate.to_row() if estimate else None, most) for estimate in found]
        if len(known) > 1:
            place = values.index(max(known))
            enough = (column[place].n or most) >= MIN_PROMPTS
            column[place] = replace(column[place], best=enough)
        columns.append(GridColumn(key, f"{name} (n\u00a0=\u00a0{most})"))
        cells.append(column)
    rows = [
        GridRow(each.arm.label, row)
        for each, row in zip(compared, zip(*cells, strict=True), strict=True)
    ]
    return Grid(title, columns, rows)


def judgements(setting: Setting, compared: Sequence[Compared]) -> Grid:
    """Lay out what judges would have accepted of the candidates of each arm; maybe no rows."""
    rows: list[GridRow] = []
    for each in compared:
        of = each.summary["num_prompts"]
        judged: Mapping[str, Numbers] = each.summary["judged"]
        if judged:
            own = _cell(each.summary["expected_accepted"], of, 3)
            decides = Cell(each.arm.options.get("verification", NOTHING), notes=("decides",))
            rows.append(GridRow(each.arm.label, [decides, own, Cell()]))
        for name, numbers in judged.items():
            accepted = _cell(numbers["expected_accepted"], of, 3)
            difference = _cell(numbers["difference"], of, 3, signed=True)
            rows.append(GridRow(each.arm.label, [Cell(name), accepted, difference]))
    columns = [
        GridColumn("judged", "judged by"),
        GridColumn("expected_accepted", "E[A] per step"),
        GridColumn("judged", "difference to the deciding rule"),
    ]
    return Grid(setting.label, columns, rows)
