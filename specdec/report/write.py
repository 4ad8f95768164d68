"""A folder of run directories -> `report.html`, plots, `summary.csv`, `.parquet` and `.md`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.jsonl import read_jsonl, write_text
from specdec.report.collect import collect
from specdec.report.collection import Collection, Setting
from specdec.report.comparison import compared
from specdec.report.exports import Results, write_tables
from specdec.report.labels import readable
from specdec.report.page import page
from specdec.report.plots import figures, save
from specdec.results.explanation_file import explanations
from specdec.results.provenance import code_state

MOST_TEXTS = 60  # that a page holds


def write_report(
    folder: Path, reference: str | None = None, force: bool = False
) -> tuple[Collection, Results]:
    """Compare the runs below a folder and write everything beside them.

    Raises:
        UserError: there is nothing to report, a run is damaged, or neither an arm nor a run's
            folder is called `reference`.
    """
    collection = collect(folder, force)
    folders = {run.path.name: arm.label for arm in collection.arms for run in arm.runs.values()}
    labels = {arm.label for arm in collection.arms}
    called = folders.get(reference or "", reference)
    if called is not None and called not in labels:
        raise UserError(f"reference={reference!r}: expected one of {'; '.join(sorted(labels))}")
    results = [
        (setting, compared(setting, _where_it_is(setting, called)))
        for setting in collection.settings
    ]
    write_tables(results, folder, notes(collection))
    plots = figures(collection, results)
    save(plots, folder)
    shown = page(collection, results, plots, list(texts(collection)), explanations(folder))
    write_text(folder / "report.html", shown)
    return collection, results


def _where_it_is(setting: Setting, reference: str | None) -> str | None:
    """Return the reference where a setting has that arm; elsewhere arms are held to the best."""
    return reference if reference in [arm.label for arm in setting.arms] else None


def notes(collection: Collection) -> Iterator[str]:
    """Say what a reader must know before any number."""
    if collection.incomplete:
        states = sorted(collection.incomplete.items())
        listed = "; ".join(f"{name} ({state})" for name, state in states[:5])
        more = f" and {len(states) - 5} more" if len(states) > 5 else ""
        yield f"{len(states)} runs are not complete and not in here: {listed}{more}"
    if collection.cut_short:
        listed = ", ".join(run.path.name for run in collection.cut_short)
        yield f"cut short, and told of the prompts that all arms finished: {listed}"
    if collection.doubled:
        number, listed = len(collection.doubled), ", ".join(collection.doubled[:5])
        yield f"left out, since another run has the same options and seed, {number}: {listed}"
    states = Counter(code_state(run.provenance) for run in collection.runs)
    if len(states) > 1:
        listed = "; ".join(f"{number} by {state}" for state, number in states.most_common())
        yield f"decoded by several states of the code, which may differ in every number: {listed}"
    of = len(collection.runs)
    for (recording, costs), number in collection.recordings.items():
        some = "" if number == of else f"{number} of {of} runs: "
        seconds = f"; seconds are predicted from {costs}" if costs else ""
        what = f"expected values, computed from the recording {recording} without decoding"
        yield f"{some}{what}{seconds}"
    for name, values in collection.apart.items():
        shown = ", ".join(str(readable(name, value)) for value in values)
        if collection.forced:
            yield f"FORCED: arms are compared although they differ in {name}: {shown}"
        else:
            yield f"not compared with each other: runs that differ in {name}: {shown}"


def texts(collection: Collection) -> Iterator[dict[str, Any]]:
    """Yield texts to look at, of the first seed of each arm, a few prompts each."""
    num_arms = len(collection.arms)
    each = max(1, MOST_TEXTS // max(1, num_arms))
    shown = 0
    for setting in collection.settings:
        for arm in setting.arms:
            file = arm.runs[min(arm.runs)].path / "tokens.jsonl"
            rows = [row for _, row in read_jsonl(file)] if file.exists() else []
            name = arm.label if len(collection.settings) == 1 else f"{arm.label} ({setting.label})"
            for row in rows[:each]:
                if shown == MOST_TEXTS:
                    return
                shown += 1
                yield {"arm": name, **row}
