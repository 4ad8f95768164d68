"""From a folder of run directories to arms that can be compared, and to settings that cannot."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from specdec.core.digest import digest_of
from specdec.core.errors import UserError
from specdec.metrics import Tally, pooled
from specdec.report.labels import (
    CONTENT,
    COSTS,
    DIGITS_OF_A_DIGEST,
    RECORDING,
    STEPS,
    TOKENS,
    distinct_labels,
    part,
    with_short_counts,
)
from specdec.results.options import PLUG_INS, SIDE, TARGET, known_by, options, proposes_nothing
from specdec.results.run_dir import RunDir, read_tally, state_of
from specdec.results.saved_options import read_options
from specdec.results.session import COMPLETE, read_status

SEED = "seed"
SAMPLING = "sampling."
# Beside the options: what makes seconds, or texts, another thing. From `provenance.json`.
CIRCUMSTANCES = {"device": "hardware", "num_threads": "threads", "num_processes": "processes"}
FILES_OF = {RECORDING: "replayed", COSTS: "costs"}
CIRCUMSTANCES |= {name: called for called, name in FILES_OF.items()}
# May be swept, as sampling may.
ORDINARY = {"batch", "max_new_tokens", "stop_strings", "ignore_eos"}
# What reading a file raises that is not what it should be.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A complete run directory."""

    path: Path
    options: Mapping[str, Any]  # by the names that they have
    known: Mapping[str, Any]  # by what decides numbers; see `known_by`
    proposes_nothing: bool
    circumstances: Mapping[str, Any]  # and digests of the prompts and the verifier
    tally: Tally
    provenance: Mapping[str, Any]
    training_tokens: int | None  # of its heads or its draft
    lossless: bool
    peak_memory_bytes: int | None
    cut_short: bool = False  # an arm of a comparison that was interrupted


@dataclass(frozen=True)
class ReportedArm:
    """Runs that differ in nothing but their seed, pooled: a prompt stays one unit."""

    label: str
    options: Mapping[str, Any]  # without the seed; training steps are given as tokens, too
    runs: Mapping[int, Run]  # by seed
    tally: Tally

    @property
    def telling(self) -> dict[str, Any]:
        """The options without training steps, where these are given as tokens."""
        known = TOKENS in self.options
        return {n: value for n, value in self.options.items() if not (known and n == STEPS)}

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is proposed: one token at a time."""
        return all(run.proposes_nothing for run in self.runs.values())

    @property
    def lossless(self) -> bool:
        """Whether its texts have exactly the verifier's law."""
        return all(run.lossless for run in self.runs.values())


@dataclass(frozen=True)
class Setting:
    """What arms must have in common so that they are compared: prompts, verifier, machine, ..."""

    label: str
    options: Mapping[str, Any]
    arms: Sequence[ReportedArm]


@dataclass(frozen=True)
class Collection:
    """All that a folder holds."""

    folder: Path
    settings: Sequence[Setting]
    incomplete: Mapping[str, str]  # folder: state
    doubled: Sequence[str]  # folders of runs for which another one of the same options stands
    apart: Mapping[str, Sequence[Any]]  # why settings are not compared: what differs
    forced: bool = False  # compared in spite of `apart`

    @property
    def arms(self) -> list[ReportedArm]:
        """All arms of all settings."""
        return [arm for setting in self.settings for arm in setting.arms]

    @property
    def runs(self) -> list[Run]:
        """All runs of all arms."""
        return [run for arm in self.arms for run in arm.runs.values()]

    @property
    def cut_short(self) -> list[Run]:
        """Arms of comparisons that were interrupted, on the prompts that all of them finished."""
        return [run for run in self.runs if run.cut_short]

    @property
    def recordings(self) -> dict[tuple[str, str], int]:
        """What was replayed in place of decoding, and what seconds come from, by how many runs."""
        circumstances = [run.circumstances for run in self.runs]
        return Counter(
            (str(c[RECORDING]), str(c[COSTS] or "")) for c in circumstances if c[RECORDING]
        )


def collect(folder: Path, force: bool = False) -> Collection:
    """Read all run directories below a folder.

    With `force` arms are compared whatever they were measured on and of whatever verifier, as long
    as their sampling is the same.

    Raises:
        UserError: there is no complete run, or one is damaged.
    """
    folders = [path.parent for path in sorted(folder.rglob("status.json"))]
    states = {path: state_of(path) for path in folders if _is_run(path)}
    if not folder.is_dir() or not states:
        raise UserError(f"run={str(folder)!r}: no run directory in that folder")
    complete = [
        path for path, state in states.items() if state == COMPLETE or is_cut_short(path, state)
    ]
    runs = [read_run(path) for path in complete]
    if not runs:
        listed = ", ".join(f"{path.name}: {state}" for path, state in list(states.items())[:3])
        raise UserError(f"run={str(folder)!r}: none of {len(states)} runs is complete ({listed})")
    runs = respelled(runs)
    kept = {_key({**run.circumstances, **run.options}): run for run in runs}  # the last by name
    doubled = [run.path.name for run in runs if run not in kept.values()]
    runs = list(kept.values())
    together = [{**run.circumstances, **_rest(run.options)} for run in runs]
    apart = {n: v for n, v in _varying(together).items() if not is_ordinary(n)}
    shown = _varying({**run.circumstances, **run.options} for run in runs)
    return Collection(
        folder,
        _settings(runs, shown, set(apart) if force else set()),
        {str(path.relative_to(folder)): s for path, s in states.items() if path not in complete},
        doubled,
        apart,
        force and bool(apart),
    )


def _is_run(path: Path) -> bool:
    """Whether a folder with a status holds decoded texts; trainings have one, too."""
    status = read_status(path)
    return status is None or status.get("kind", RunDir.kind) == RunDir.kind


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: one of its files is damaged.
    """
    saved = read_options(path)
    try:
        provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        circumstances = {called: provenance.get(name) for name, called in CIRCUMSTANCES.items()}
        for name in ("prompts.path", "verifier.path"):
            circumstances[f"{CONTENT}{name}"] = provenance["files"].get(name)
        known = known_by(saved, provenance["files"], provenance.get("code", {}))
        for name in (RECORDING, COSTS):
            known[name] = provenance["files"].get(FILES_OF[name], circumstances[name])
        trained = provenance.get("training_tokens")
        outcome = trained, summary["lossless"], summary.get("peak_memory_bytes")
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(f"{path}: damaged ({reason})") from None
    used, plain = options(saved), proposes_nothing(saved)
    cut_short = is_cut_short(path, state_of(path))
    tally = read_tally(path)
    return Run(path, used, known, plain, circumstances, tally, provenance, *outcome, cut_short)


def respelled(runs: Sequence[Run]) -> list[Run]:
    """Give options that are the same the same name, and those that are not, another.

    A file may be named in several ways, and lie in several places; a plug-in may be edited, and
    weights may be replaced, between two runs that name them alike.
    """
    names: dict[str, dict[str, Any]] = {}  # of an option: what to call what it is
    unnamed = [{n: v for n, v in run.known.items() if n not in run.options} for run in runs]
    # Loaders and samplers of one's own have no name; plug-ins have, and it says what they are.
    named = {*PLUG_INS, "judges", "training.train", *(name for run in runs for name in run.options)}
    varying = {n for n in _varying(unnamed) if not named & {n.split(".")[0], n.rpartition(".")[0]}}
    found: list[Run] = []
    for run, more in zip(runs, unnamed, strict=True):
        options = {**run.options, **{n: v for n, v in more.items() if n in varying}}
        used = {name: _called(run, name, value, names) for name, value in options.items()}
        circumstances = {
            name: _called(run, name, value, names) if name in run.known else value
            for name, value in run.circumstances.items()
        }
        found.append(replace(run, options=used, circumstances=circumstances))
    return found


def _called(run: Run, name: str, value: Any, names: dict[str, dict[str, Any]]) -> Any:
    """Return what runs before this one call an option, or a name that none of them gave another."""
    code = {each: run.known[each] for each in run.known if _is_code_of(each, name)}
    key = _key({**code, name: run.known.get(name)})
    taken = names.setdefault(name, {})
    if key not in taken:
        alike = value is not None and any(_key(value) == _key(each) for each in taken.values())
        # Contents of prompts and verifiers are among the circumstances.
        alike = alike and f"{CONTENT}{name}" not in run.circumstances
        taken[key] = f"{value} ({digest_of(key.encode())[:DIGITS_OF_A_DIGEST]})" if alike else value
    return taken[key]


def _is_code_of(known: str, name: str) -> bool:
    owner, _, what = known.rpartition(".")
    return what in (TARGET, "code") and (
        owner == name or (owner.startswith(f"{name}.") and name == "judges")
    )


def is_cut_short(path: Path, state: str) -> bool:
    """Whether this is an arm of a comparison that ended early and yet has results.

    Arms of a comparison are summarized on the prompts that all of them finished.
    """
    if state not in ("interrupted", "failed") or not (path / "summary.json").exists():
        return False
    try:
        return bool(json.loads((path / "provenance.json").read_text(encoding="utf-8"))["compared"])
    except DAMAGE:
        return False


def is_ordinary(name: str) -> bool:
    """Whether an option that arms do not share is swept for its own sake, and not by mistake."""
    return name in ORDINARY or name.startswith(SAMPLING)


def is_side(name: str) -> bool:
    """Whether an option belongs to one of several arms: how it proposes and verifies."""
    return name in (*PLUG_INS, "judges") or name.startswith(SIDE)


def _rest(used: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in used.items() if not is_side(name) and name != SEED}


def _settings(
    runs: Sequence[Run], shown: Mapping[str, Sequence[Any]], ignored: set[str]
) -> list[Setting]:
    def shared(run: Run) -> dict[str, Any]:
        together = {**run.circumstances, **_rest(run.options)}
        return {name: value for name, value in together.items() if name not in ignored}

    tokens = {t for group in _by_arm(runs) if (t := _tokens_of(group)) is not None}
    found: list[Setting] = []
    for group in _grouped(runs, shared):
        used = _rest(group[0].options)
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


def _varying(tables: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the names with several values, and these; of plug-ins also where one has none."""
    rows = list(tables)
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        having = [row for row in rows if name in row]
        values = list({_key(row[name]): row[name] for row in having}.values())
        if len(values) > 1 or (name in PLUG_INS and len(having) < len(rows)):
            found[name] = values
    return found


def _grouped(items: Iterable[T], key: Callable[[T], Mapping[str, Any]]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(_key(key(item)), []).append(item)
    return list(groups.values())


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
