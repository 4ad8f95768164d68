"""From a folder of run directories to arms that can be compared, and to settings that cannot."""

import json
from pathlib import Path

from specdec.core.errors import UserError
from specdec.report.collection import Collection, Run
from specdec.report.grouping import is_ordinary, key_of, settings_of, shared_options, varying
from specdec.report.labels import CONTENT, COSTS, RECORDING
from specdec.report.respelled import respelled
from specdec.results.options import known_by, options, proposes_nothing
from specdec.results.run_dir import RunDir, read_tally, state_of
from specdec.results.saved_options import read_options
from specdec.results.session import COMPLETE, read_status

# Beside the options: what makes seconds, or texts, another thing. From `provenance.json`.
CIRCUMSTANCES = {"device": "hardware", "num_threads": "threads", "num_processes": "processes"}
FILES_OF = {RECORDING: "replayed", COSTS: "costs"}
CIRCUMSTANCES |= {name: called for called, name in FILES_OF.items()}
# What reading a file raises that is not what it should be.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)


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
    kept = {key_of({**run.circumstances, **run.options}): run for run in runs}  # the last by name
    doubled = [run.path.name for run in runs if run not in kept.values()]
    runs = list(kept.values())
    together = [{**run.circumstances, **shared_options(run.options)} for run in runs]
    apart = {n: v for n, v in varying(together).items() if not is_ordinary(n)}
    shown = varying({**run.circumstances, **run.options} for run in runs)
    return Collection(
        folder,
        settings_of(runs, shown, set(apart) if force else set()),
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
    lost = summary.get("regret")
    more = provenance, *outcome, cut_short, lost
    return Run(path, used, known, plain, circumstances, tally, *more)


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
