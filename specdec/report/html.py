"""One file that shows all of a folder of runs in a browser, with no network and no server."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from specdec.metrics import DEFINITIONS
from specdec.report.collect import Collection, Setting
from specdec.report.comparison import Compared
from specdec.report.plots import Plot, svg

Results = Sequence[tuple[Setting, Sequence[Compared]]]
Numbers = Mapping[str, Any]  # an estimate: value, low, high, n

NOTHING = "-"
KINDS = ("accepted", "recovered", "bonus")
# Texts of 200 arms over 480 prompts would be hundreds of megabytes.
MAX_TEXT_CHARACTERS = 3_000_000
LONGEST_VALUE = 100
MAX_VALUES = 6

# What only this page speaks of; everything else is in DEFINITIONS.
MORE: Mapping[str, str] = MappingProxyType(
    {
        "arm": "Runs that differ in nothing but their seed, pooled: a prompt stays one unit.",
        "rule": "What decides which candidates survive. Lossless: the texts have exactly the "
        "verifier's law; otherwise total_variation (TV) and kl (KL, nats) say how far from it.",
        "interval": "The small numbers below a number: 95 %, by bootstrap over prompts. n is the "
        "number of prompts; it is given with a number that rests on fewer than its table says.",
        "tie": "=, before a number: the difference to the best arm of the table (bold) is not "
        "resolved: p >= 0.05, paired over prompts, adjusted for the number of arms (Holm 1979).",
        "peak_memory_bytes": "The most accelerator memory that a run of the arm held; in GiB.",
        "num_seeds": "Runs that were pooled.",
        "accepted": "Of a token: a draft token that the rule let pass.",
        "recovered": "Of a token: the verifier's own, where it took none of the candidates.",
        "bonus": "Of a token: the verifier's own, behind draft tokens that were all accepted.",
        "depth": "Of a token: its place in its step, from 1; the verifier's own token is the last.",
        "rejected": "Of a token: the candidates at its place that did not become text.",
    }
)
OF_TOKENS = (*KINDS, "depth", "rejected")


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
class Column:
    """A title, and the name of what explains it in the glossary."""

    key: str
    title: str


@dataclass(frozen=True)
class Row:
    """One arm: how it is called, and a cell for each column."""

    arm: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Grid:
    """A table of arms; their names, the first column, are not among its columns."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sorted_by: str = ""  # the key of a column, downwards
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PlotGroup:
    """Plots that belong together: the first parts, and what these had no room for."""

    title: str
    first: list[Plot] = field(default_factory=list[Plot])
    further: list[Plot] = field(default_factory=list[Plot])


def page(
    collection: Collection,
    results: Results,
    plots: Mapping[str, Plot],
    texts: Sequence[Mapping[str, Any]],
) -> str:
    """Render the report, whose looks and scripts are in the folder `page`.

    A text is `{arm, prompt_id, turn, prompt, tokens}`, a token `{text, kind, depth, rejected}`:
    kind is accepted, recovered or bonus, and depth counts from 1 within a step. Texts that would
    make the file too large are left out, the last ones of every arm first, and the page says so.
    """
    environment = Environment(
        loader=PackageLoader("specdec.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    script = _ours("script.js")
    overviews = [_overview(setting, compared) for setting, compared in results]
    categories = [grid for setting, compared in results for grid in _categories(setting, compared)]
    facts = [_facts(run.path) for arm in collection.arms for run in arm.runs.values()]
    embedded = _embedded(texts)
    drawn = {name: Markup(svg(plot.figure)) for name, plot in plots.items()}
    return environment.get_template("report.html.j2").render(
        style=Markup(_ours("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=collection.folder.resolve().name,
        head=_head(collection, facts),
        incomplete=collection.incomplete,
        apart={name: _listed(values) for name, values in collection.apart.items()},
        forced=collection.forced,
        overviews=overviews,
        categories=categories,
        judges=[_judgements(setting, compared) for setting, compared in results],
        groups=_grouped(plots.values()),
        drawn=drawn,
        texts=embedded,
        num_texts=len(texts),
        glossary=_glossary(overviews, plots.values(), bool(texts)),
        definitions={**DEFINITIONS, **MORE},
        provenance=_summarized(facts),
        shared=_shared(collection),
        runs=_runs(collection),
        kinds=KINDS,
    )


def _ours(name: str) -> str:
    return (files("specdec.report") / "page" / name).read_text(encoding="utf-8")


# Tables.


def _overview(setting: Setting, compared: Sequence[Compared]) -> Grid:
    """Lay out the arms of a setting, the most efficient first, without columns of dashes."""
    columns = {
        column: [cell(each) for each in compared] for column, cell in _columns(compared).items()
    }
    filled = {c: cells for c, cells in columns.items() if any(x.text != NOTHING for x in cells)}
    in_order = sorted(range(len(compared)), key=lambda i: -(_tau(compared[i]) or 0.0))
    rows = [Row(compared[i].arm.label, [cells[i] for cells in filled.values()]) for i in in_order]
    notes = [f"Reference arm: {label}" for label in _references(compared)]
    return Grid(setting.label, list(filled), rows, "block_efficiency", notes)


def _tau(each: Compared) -> float | None:
    return each.summary["block_efficiency"]["value"]


def _references(compared: Sequence[Compared]) -> list[str]:
    found = [each.summary["reference"] for each in compared if "reference" in each.summary]
    return list(dict.fromkeys(found))


def _columns(compared: Sequence[Compared]) -> dict[Column, Callable[[Compared], Cell]]:
    """Say what stands in a cell, by column."""
    most = max(compared, key=lambda each: _tau(each) or 0.0)
    fastest = max(compared, key=lambda each: each.summary["tokens_per_second"]["value"] or 0.0)
    to = "best" if _references(compared) in ([], [most.arm.label]) else "reference"

    def number(key: str, digits: int = 2, signed: bool = False) -> Callable[[Compared], Cell]:
        def cell(each: Compared) -> Cell:
            return _cell(each.summary.get(key), each.summary["num_prompts"], digits, signed)

        return cell

    def efficiency(each: Compared) -> Cell:
        return _marked(number("block_efficiency")(each), each is most, each.tie)

    def speed(each: Compared) -> Cell:
        return _marked(number("tokens_per_second", 1)(each), each is fastest, each.tie_in_speed)

    def speedup(each: Compared) -> Cell:
        return _marked(number("speedup")(each), each is fastest, each.tie_in_speed)

    return {
        Column("rule", "rule"): _rule,
        Column("block_efficiency", "tau"): efficiency,
        Column("difference", f"difference to {to}"): number("difference", signed=True),
        Column("acceptance_rate", "acceptance rate"): number("acceptance_rate"),
        Column("overlap", "overlap"): number("overlap"),
        Column("tokens_per_second", "tokens/s"): speed,
        Column("speedup", "speedup"): speedup,
        Column("cost_ratio", "cost ratio"): number("cost_ratio"),
        Column("peak_memory_bytes", "peak memory (GiB)"): _memory,
        Column("num_prompts", "prompts (n)"): lambda each: _count(each.summary["num_prompts"]),
        Column("num_seeds", "seeds"): lambda each: _count(each.summary["num_seeds"]),
    }


def _marked(cell: Cell, best: bool, tie: bool) -> Cell:
    known = cell.text != NOTHING
    return replace(cell, best=best and known, tie=tie and known and not best)


def _cell(row: Numbers | None, of: int, digits: int = 2, signed: bool = False) -> Cell:
    """Write a number, its interval, and its n unless that is what the table says anyway."""
    if row is None or row["value"] is None:
        return Cell()
    form, between = (f"+.{digits}f", " to ") if signed else (f".{digits}f", "\u2013")
    interval = "" if row["low"] is None else f"{row['low']:{form}}{between}{row['high']:{form}}"
    return Cell(
        f"{row['value']:{form}}", interval, row["n"] if row["n"] != of else None, sort=row["value"]
    )


def _rule(each: Compared) -> Cell:
    """Name the rule, and say whether its texts have the verifier's law."""
    name = each.arm.options.get("verification", "none")
    if each.arm.lossless:
        return Cell(name, notes=("lossless",), sort=0.0)
    told = {
        short: _cell(each.summary.get(key), each.summary["num_prompts"], digits=3)
        for short, key in (("TV", "total_variation"), ("KL", "kl"))
    }
    notes = [
        f"{short} {cell.text}" + (f" ({cell.interval})" if cell.interval else "")
        for short, cell in told.items()
        if cell.text != NOTHING
    ]
    return Cell(name, notes=("lossy", *notes), sort=told["TV"].sort)


def _memory(each: Compared) -> Cell:
    size = each.summary["peak_memory_bytes"]
    return Cell() if size is None else Cell(f"{size / 2**30:.2f}", sort=size)


def _count(number: int) -> Cell:
    return Cell(str(number), sort=number)


def _categories(setting: Setting, compared: Sequence[Compared]) -> list[Grid]:
    """Lay out arms by categories of prompts, once for each metric; nothing if there is but one."""
    names = sorted({name for each in compared for name in each.by_category})
    if len(names) < 2:
        return []
    drafting = [each for each in compared if not each.arm.is_baseline]
    found = [_by_category(f"tau, {setting.label}", compared, names, "block_efficiency")]
    if any("speedup" in metrics for each in drafting for metrics in each.by_category.values()):
        found.append(_by_category(f"speedup, {setting.label}", drafting, names, "speedup"))
    return found


def _by_category(title: str, compared: Sequence[Compared], names: Sequence[str], key: str) -> Grid:
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    for name in names:
        found = [each.by_category.get(name, {}).get(key) for each in compared]
        most = max((estimate.n for estimate in found if estimate), default=0)
        values = [estimate.value or 0.0 if estimate else 0.0 for estimate in found]
        column = [_cell(estimate.to_row() if estimate else None, most) for estimate in found]
        column[values.index(max(values))] = _marked(column[values.index(max(values))], True, False)
        columns.append(Column(key, f"{name} (n\u00a0=\u00a0{most})"))
        cells.append(column)
    rows = [
        Row(each.arm.label, row)
        for each, row in zip(compared, zip(*cells, strict=True), strict=True)
    ]
    return Grid(title, columns, rows)


def _judgements(setting: Setting, compared: Sequence[Compared]) -> Grid:
    """Lay out what judges would have accepted of the candidates of each arm; maybe no rows."""
    rows: list[Row] = []
    for each in compared:
        of = each.summary["num_prompts"]
        judged: Mapping[str, Numbers] = each.summary["judged"]
        if judged:
            own = _cell(each.summary["expected_accepted"], of, 3)
            decides = Cell(each.arm.options.get("verification", NOTHING), notes=("decides",))
            rows.append(Row(each.arm.label, [decides, own, Cell()]))
        for name, numbers in judged.items():
            accepted = _cell(numbers["expected_accepted"], of, 3)
            difference = _cell(numbers["difference"], of, 3, signed=True)
            rows.append(Row(each.arm.label, [Cell(name), accepted, difference]))
    columns = [
        Column("judged", "judged by"),
        Column("expected_accepted", "E[A] per step"),
        Column("judged", "difference to the deciding rule"),
    ]
    return Grid(setting.label, columns, rows)


# Plots and texts.


def _grouped(plots: Iterable[Plot]) -> list[PlotGroup]:
    found: dict[str, PlotGroup] = {}
    for plot in plots:
        group = found.setdefault(plot.group, PlotGroup(plot.group))
        (group.first if plot.part == 1 else group.further).append(plot)
    return list(found.values())


def _embedded(texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pack texts as `script.js` reads them: names and prompts once, tokens as short lists."""
    arms: dict[str, int] = {}
    prompts: dict[str, int] = {}
    rows: list[list[Any]] = []
    room = MAX_TEXT_CHARACTERS
    for text in _first_of_each(texts):
        tokens = [_packed_token(token) for token in text["tokens"]]
        new = "" if text["prompt"] in prompts else text["prompt"]
        size = len(json.dumps([tokens, new]))
        if size > room:
            continue
        room -= size
        arm = arms.setdefault(text["arm"], len(arms))
        prompt = prompts.setdefault(text["prompt"], len(prompts))
        rows.append([arm, text["prompt_id"], text["turn"], prompt, tokens])
    return {"arms": list(arms), "prompts": list(prompts), "texts": rows}


def _first_of_each(texts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Put the first text of every arm before the second of any."""
    seen: Counter[str] = Counter()
    ranks: list[int] = []
    for text in texts:
        ranks.append(seen[text["arm"]])
        seen[text["arm"]] += 1
    return [texts[i] for i in sorted(range(len(texts)), key=lambda i: ranks[i])]


def _packed_token(token: Mapping[str, Any]) -> list[Any]:
    assert token["kind"] in KINDS, f"a token is one of {KINDS}, not {token['kind']!r}"
    packed = [token["text"], KINDS.index(token["kind"]), token["depth"]]
    return [*packed, list(token["rejected"])] if token["rejected"] else packed


# What is said of the runs.


def _head(collection: Collection, facts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    days = sorted(str(each["started"])[:10] for each in facts if each.get("started"))
    arms = collection.arms
    prompts = {name for arm in arms for name in arm.tally.prompt_ids}
    verifiers = {str(arm.options.get("verifier.path")): None for arm in arms}
    return {
        "date": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "runs": _many(sum(len(arm.runs) for arm in arms), "run"),
        "arms": _many(len(arms), "arm"),
        "settings": _many(len(collection.settings), "setting"),
        "prompts": _many(len(prompts), "prompt"),
        "verifier": ", ".join(verifiers),
    }


def _many(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _glossary(overviews: Sequence[Grid], plots: Iterable[Plot], texts: bool) -> list[str]:
    """Name what this page speaks of, in the order in which it does."""
    captions = " ".join(plot.caption for plot in plots)
    used = {column.key for grid in overviews for column in grid.columns}
    used |= {key for key, meaning in DEFINITIONS.items() if meaning in captions}
    used |= {"arm", "rule", "interval", "tie", "total_variation", "kl"}
    used |= {"num_accepted", "expected_accepted", "judged", *(OF_TOKENS if texts else ())}
    names = ["arm", *DEFINITIONS, *MORE]
    return [name for name in dict.fromkeys(names) if name in used]


def _facts(path: Path) -> dict[str, Any]:
    """Read what a run was measured under; nothing if its `provenance.json` is gone by now."""
    try:
        found = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _summarized(facts: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the different values of every fact, and of how many runs if there are several."""
    flat = [_flat(each) for each in facts]
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for each in flat for name in each):
        counts = Counter(each[name] for each in flat if name in each)
        if name == "started" and len(counts) > 1:
            found[name] = [f"{min(counts)} to {max(counts)}"]
            continue
        values = [f"{text} ({_many(n, 'run')})" for text, n in counts.most_common(MAX_VALUES)]
        more = [f"and {len(counts) - MAX_VALUES} more"] if len(counts) > MAX_VALUES else []
        found[name] = list(counts) if len(counts) == 1 else values + more
    return found


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """Name what is within: `versions.torch`; a command line is one string."""
    found: dict[str, str] = {}
    for name, value in facts.items():
        if name == "argv" and isinstance(value, list):
            found["command"] = " ".join(str(each) for each in value)
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": str(each) for key, each in value.items()}
        else:
            found[name] = str(value)
    return found


def _shared(collection: Collection) -> dict[str, str]:
    """Return the options that all arms have, with the same value, unless that is none."""
    first, *others = [arm.options for arm in collection.arms]
    return {
        name: _plain(value)
        for name, value in first.items()
        if value is not None and all(name in each and each[name] == value for each in others)
    }


def _runs(collection: Collection) -> list[tuple[str, str, int, str]]:
    return [
        (setting.label, arm.label, seed, _below(run.path, collection.folder))
        for setting in collection.settings
        for arm in setting.arms
        for seed, run in arm.runs.items()
    ]


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _listed(values: Sequence[Any]) -> str:
    more = f"; and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else ""
    return "; ".join(_plain(value) for value in values[:MAX_VALUES]) + more


def _plain(value: Any) -> str:
    text = "none" if value is None else str(value)
    half = LONGEST_VALUE // 2
    return text if len(text) <= LONGEST_VALUE else f"{text[: half - 3]}...{text[-half:]}"
