"""Put the parts together; looks and scripts are in the files beside this one."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from specdec.metrics import DEFINITIONS, MIN_PROMPTS
from specdec.report.collection import Collection, Setting
from specdec.report.comparison import Compared
from specdec.report.labels import readable
from specdec.report.page.about_runs import head, listed, runs, shared, summarized
from specdec.report.page.glossary import MORE, glossary
from specdec.report.page.grids import categories, judgements, overview
from specdec.report.page.token_texts import KINDS, embedded
from specdec.report.plots import Plot, svg
from specdec.report.table import INTERVALS, TIE
from specdec.results.explanation import Explanation
from specdec.results.explanation_lines import (
    LEAD,
    branches,
    decision_of,
    drafting_of,
    left_out_of,
    parts_of,
    percent,
    result_of,
    sum_of,
)

# How a candidate looks, by what became of it.
FATES = {"accepted": "token accepted d3", "refused": "token recovered", "out of reach": "mark"}
WORDING = (parts_of, drafting_of, left_out_of, branches, percent, decision_of, result_of, sum_of)
Results = Sequence[tuple[Setting, Sequence[Compared]]]


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
    explanations: Mapping[str, Explanation] = MappingProxyType({}),
) -> str:
    """Render the report, whose looks and scripts are in the folder `page`.

    A text is `{arm, prompt_id, turn, prompt, tokens}`, a token `{text, kind, depth, rejected}`:
    kind is accepted, recovered or bonus, and depth counts from 1 within a step. Texts that would
    make the file too large are left out, the last ones of every arm first, and the page says so.
    """
    script = _ours("script.js")
    overviews = [overview(setting, compared) for setting, compared in results]
    by_category = [grid for setting, compared in results for grid in categories(setting, compared)]
    provenances = [run.provenance for arm in collection.arms for run in arm.runs.values()]
    drawn = {name: Markup(svg(plot.figure)) for name, plot in plots.items()}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            style=Markup(_ours("style.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            title=collection.folder.resolve().name,
            head=head(collection, provenances),
            incomplete=collection.incomplete,
            cut_short=listed([run.path.name for run in collection.cut_short]),
            recordings=collection.recordings,
            apart={
                name: listed([readable(name, value) for value in values])
                for name, values in collection.apart.items()
            },
            forced=collection.forced,
            overviews=overviews,
            categories=by_category,
            judges=[judgements(setting, compared) for setting, compared in results],
            groups=_grouped(plots.values()),
            drawn=drawn,
            texts=embedded(texts),
            num_texts=len(texts),
            explanations=explanations,
            glossary=glossary(overviews, plots.values(), bool(texts)),
            provenance=summarized(provenances),
            shared=shared(collection),
            runs=runs(collection),
        )
    )


def explanation_page(explanation: Explanation) -> str:
    """Render one explanation alone."""
    return (
        _environment()
        .get_template("explanation.html.j2")
        .render(style=Markup(_ours("style.css")), explanation=explanation)
    )


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("specdec.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {"unbroken": unbroken, "breakable": breakable}
    found.globals |= {"tie": TIE, "intervals": INTERVALS, "min_prompts": MIN_PROMPTS}
    found.globals |= {"definitions": {**DEFINITIONS, **MORE}, "kinds": KINDS}
    found.globals |= {"lead": LEAD, "fates": FATES}
    found.globals |= {each.__name__: each for each in WORDING}
    return found


def unbroken(text: str) -> str:
    """Let no line end between a number and what belongs to it: 95 %, n = 3, 194 k."""
    return re.sub(r"(?<=\bn) (?==)|(?<=\bn =) (?=\d)|(?<=\d) (?=%|[kMGT]\b)", "\u00a0", text)


def breakable(name: str) -> Markup:
    """Let lines of a long name end behind its joints, not within a word."""
    return Markup("<wbr>").join(escape(piece) for piece in re.split(r"(?<=[_,.=+-])", name))


def _ours(name: str) -> str:
    return (files("specdec.report") / "page" / name).read_text(encoding="utf-8")


def _grouped(plots: Iterable[Plot]) -> list[PlotGroup]:
    found: dict[str, PlotGroup] = {}
    for plot in plots:
        group = found.setdefault(plot.group, PlotGroup(plot.group))
        (group.first if plot.part == 1 else group.further).append(plot)
    return list(found.values())
