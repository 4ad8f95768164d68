"""Options that are the same get the same name, however runs spell them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specdec.core.digest import digest_of
from specdec.report.collection import Run
from specdec.report.grouping import key_of, varying
from specdec.report.labels import CONTENT, DIGITS_OF_A_DIGEST
from specdec.results.options import PLUG_INS, TARGET


def respelled(runs: Sequence[Run]) -> list[Run]:
    """Give options that are the same the same name, and those that are not, another.

    A file may be named in several ways, and lie in several places; a plug-in may be edited, and
    weights may be replaced, between two runs that name them alike.
    """
    names: dict[str, dict[str, Any]] = {}  # of an option: what to call what it is
    unnamed = [{n: v for n, v in run.known.items() if n not in run.options} for run in runs]
    # Loaders and samplers of one's own have no name; plug-ins have, and it says what they are.
    named = {*PLUG_INS, "judges", "training.train", *(name for run in runs for name in run.options)}
    differing = {n for n in varying(unnamed) if not named & {n.split(".")[0], n.rpartition(".")[0]}}
    found: list[Run] = []
    for run, more in zip(runs, unnamed, strict=True):
        options = {**run.options, **{n: v for n, v in more.items() if n in differing}}
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
    key = key_of({**code, name: run.known.get(name)})
    taken = names.setdefault(name, {})
    if key not in taken:
        alike = value is not None and any(key_of(value) == key_of(each) for each in taken.values())
        # Contents of prompts and verifiers are among the circumstances.
        alike = alike and f"{CONTENT}{name}" not in run.circumstances
        taken[key] = f"{value} ({digest_of(key.encode())[:DIGITS_OF_A_DIGEST]})" if alike else value
    return taken[key]


def _is_code_of(known: str, name: str) -> bool:
    owner, _, what = known.rpartition(".")
    return what in (TARGET, "code") and (
        owner == name or (owner.startswith(f"{name}.") and name == "judges")
    )
