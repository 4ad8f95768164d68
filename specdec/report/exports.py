"""The table of a report, one arm a row: to compute with (CSV, Parquet) and to paste (Markdown)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_object_dtype

from specdec.core.jsonl import replacing_file, write_text
from specdec.metrics import DEFINITIONS
from specdec.report.cells import NOTHING, in_words, one_line
from specdec.report.collection import Setting
from specdec.report.comparison import Compared
from specdec.report.table import INTERVALS, TIE, reasons, too_few
from specdec.results.flat import flat

Results = Sequence[tuple[Setting, Sequence[Compared]]]

PASTED = ("block_efficiency", "difference", "acceptance_rate", "overlap", "speedup")
TITLES = {"difference": "difference to reference (Holm's level)"}
MARKS = {"block_efficiency": ("best", "tie"), "speedup": ("fastest", "tie_in_speed")}


def frame(results: Results) -> pd.DataFrame:
    """Lay out all arms: options, then metrics, each with `_low`, `_high` and `_n` behind it."""
    table = pd.DataFrame([_row(setting, each) for setting, arms in results for each in arms])
    return table.astype(dict.fromkeys(("tie", "tie_in_speed"), "boolean"))  # or not tested


def _row(setting: Setting, each: Compared) -> dict[str, Any]:
    summary = each.summary
    return {
        "setting": setting.label,
        "arm": each.arm.label,
        **{name: _cell(value) for name, value in each.arm.options.items()},
        "seeds": ",".join(map(str, sorted(each.arm.runs))),
        "lossless": each.arm.lossless,
        "reference": summary.get("reference"),
        "tie": summary["tie"],
        "tie_in_speed": summary["tie_in_speed"],
        "speedup_reason": summary["speedup"].get("reason"),
        **flat(summary),
    }


def _cell(value: object) -> object:
    """Keep plain values; lists become text, which every format has."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def write_tables(results: Results, folder: Path, notes: Iterable[str]) -> None:
    """Write `summary.csv`, `summary.parquet` and `summary.md`."""
    table = frame(results)
    write_text(folder / "summary.csv", table.to_csv(index=False))
    # An option may be of several types over all arms (a number, or null); a column may not.
    mixed = {name: "string" for name in table if is_object_dtype(table[name])}
    with replacing_file(folder / "summary.parquet") as temporary:
        table.astype(mixed).to_parquet(temporary, index=False)
    write_text(folder / "summary.md", markdown(results, notes))


def markdown(results: Results, notes: Iterable[str]) -> str:
    """Lay out the metrics that are quoted most, one table a setting, with definitions below."""
    lines: list[str] = [f"> {note}\n" for note in notes]
    seeds = any(len(each.arm.runs) > 1 for _, arms in results for each in arms)
    counts = {"prompts": "num_prompts", **({"seeds": "num_seeds"} if seeds else {})}
    for setting, arms in results:
        shown = _filled(arms)
        lines.append(f"### {setting.label}\n")
        titles = ["arm", "lossless", *(TITLES.get(name, in_words(name)) for name in shown), *counts]
        lines.append(f"| {' | '.join(titles)} |")
        lines.append("|---" * len(titles) + "|")
        for each in arms:
            cells = [_shown(each.summary, name) for name in shown]
            name = each.arm.label.replace("|", "\\|")
            lossless = "yes" if each.arm.lossless else "no"
            cells += [str(each.summary[key]) for key in counts.values()]
            lines.append(f"| {' | '.join([name, lossless, *cells])} |")
        lines.append("")
        summaries = [each.summary for each in arms]
        few = too_few(summaries)
        notes = [*([few] if few is not None else []), *reasons(summaries)]
        lines += [f"{note}\n" for note in notes]
    names = _filled([each for _, arms in results for each in arms])
    lines += [f"* {in_words(name)}: {DEFINITIONS[name]}" for name in names]
    lines += [f"* {INTERVALS}", "* Bold: the best arm of a table, and the fastest.", f"* {TIE}"]
    return "\n".join(lines) + "\n"


def _shown(summary: Mapping[str, Any], name: str) -> str:
    cell = one_line(summary.get(name), signed=name == "difference")
    first, tie = MARKS.get(name, (None, None))
    cell = f"**{cell}**" if first is not None and summary[first] else cell
    return f"{cell} =" if tie is not None and summary[tie] else cell


def _filled(arms: Sequence[Compared]) -> list[str]:
    """Name what at least one arm has a number for; what nobody timed has no speed."""
    rows = {name: [each.summary.get(name) for each in arms] for name in PASTED}
    return [name for name in PASTED if any(one_line(row) != NOTHING for row in rows[name])]
