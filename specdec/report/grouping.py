"""Which runs are of one arm, and which arms of one setting, by the options that they share."""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from specdec.metrics import pooled
from specdec.report.collection import ReportedArm, Run, Setting
from specdec.report.labels import STEPS, TOKENS, distinct_labels, part, with_short_counts
from specdec.results.options import PLUG_INS, SIDE

SEED = "seed"
SAMPLING = "sampling."
# May be swept, as sampling may.
ORDINARY = {"batch", "max_new_tokens", "stop_strings", "ignore_eos"}
T = TypeVar("T")


def is_ordinary(name: str) -> bool:
    """Whether an option that arms do not share is swept for its own sake, and not by mistake."""
    return name in ORDINARY or name.startswith(SAMPLING)


def is_side(name: str) -> bool:
    """Whether an option belongs to one of several arms: how it proposes and verifies."""
    return name in (*PLUG_INS, "judges") or name.startswith(SIDE)


def shared_options(used: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that arms of one setting share."""
    return {name: value for name, value in used.items() if not is_side(name) and name != SEED}


def settings_of(
    runs: Sequence[Run], shown: Mapping[str, Sequence[Any]], ignored: set[str]
) -> list[Setting]:
    """Group runs into settings, but for what is `ignored`; labels tell what is `shown`."""

    def shared(run: Run) -> dict[str, Any]:
        together = {**run.circumstances, **shared_options(run.options)}
        return {name: value for name, value in together.items() if name not in ignored}

    tokens = {t for group in _by_arm(runs) if (t := _tokens_of(group)) is not None}
    found: list[Setting] = []
    for group in _grouped(runs, shared):
        used = shared_options(group[0].options)
        options = {**group[0].circumstances, **used}
        names = [name for name in shown if name in options and name not in ignored]
        label = ", ".join(part(name, options[name]) for name in names)
        found.append(Setting(label or "all", used, _arms(group, shown, ignored, tokens)))
    return found


def _arms(
    runs: Sequence[Run],
    shown: Mapping[str, Sequence[Any]],
    ignored: set[str],
    tokens: set[int],  # that any arm of any setting was trained on
) -> list[ReportedArm]:
    # Plug-ins first, as one would say it: draft_model, chain, gamma=4.
    names = [n for n in PLUG_INS if n in shown or n == "proposer"]
    names += [n for n in shown if is_side(n) and n not in PLUG_INS] + sorted(ignored)
    names = [each for name in names for each in ((STEPS, TOKENS) if name == STEPS else (name,))]
    groups = _by_arm(runs)
    used = [_with_tokens(_without_seed(group[0]), group) for group in groups]
    options = [{**group[0].circumstances, **each} for group, each in zip(groups, used, strict=True)]
    labels = distinct_labels(with_short_counts(options, tokens), names)
    found: list[ReportedArm] = []
    for group, each, label in zip(groups, used, labels, strict=True):
        seeds = {run.options[SEED]: run for run in group}
        tally = pooled([run.tally for run in group])
        found.append(ReportedArm(label, each, seeds, tally))
    return found


def _by_arm(runs: Iterable[Run]) -> list[list[Run]]:
    return _grouped(runs, lambda run: {**_without_seed(run), **run.circumstances})


def _without_seed(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.options.items() if name != SEED}


def _with_tokens(used: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Say how long was trained in tokens, beside the steps."""
    tokens = _tokens_of(runs)
    return dict(used) if tokens is None else dict(sorted({**used, TOKENS: tokens}.items()))


def _tokens_of(runs: Sequence[Run]) -> int | None:
    """Return training tokens, on average over seeds, which draw other samples."""
    known = [run.training_tokens for run in runs if run.training_tokens is not None]
    return round(sum(known) / len(known)) if known else None


def varying(tables: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the names with several values, and these; of plug-ins also where one has none."""
    rows = list(tables)
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        having = [row for row in rows if name in row]
        values = list({key_of(row[name]): row[name] for row in having}.values())
        if len(values) > 1 or (name in PLUG_INS and len(having) < len(rows)):
            found[name] = values
    return found


def _grouped(items: Iterable[T], key: Callable[[T], Mapping[str, Any]]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key_of(key(item)), []).append(item)
    return list(groups.values())


def key_of(value: Any) -> str:
    """Return a text that equal values share, whatever the order of their names."""
    return json.dumps(value, sort_keys=True)
