"""What was measured on what: a page's head and its last tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.report.collection import Collection

LONGEST_VALUE = 100
MAX_VALUES = 6


def head(collection: Collection, provenances: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    days = sorted(str(each["started"])[:10] for each in provenances if each.get("started"))
    arms = collection.arms
    prompts = {name for arm in arms for name in arm.tally.prompt_ids}
    verifiers = list(dict.fromkeys(name for arm in arms if (name := _verifier(arm.options))))
    return {
        "date": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "runs": _many(len(collection.runs), "run"),
        "arms": _many(len(arms), "arm"),
        "settings": _many(len(collection.settings), "setting"),
        "prompts": _many(len(prompts), "prompt"),
        "verifier": ", ".join(verifiers),
        "ran": _ran(provenances),
    }


def _verifier(used: Mapping[str, Any]) -> str:
    """Name a verifier by its path; where it was trained with its heads, by whence it came."""
    if used.get("verifier.path") is not None:
        return str(used["verifier.path"])
    path = used.get("training.verifier.path")
    return "" if path is None else f"{path} (tuned with its heads)"


def _ran(provenances: Sequence[Mapping[str, Any]]) -> str:
    """Say in which types and how models ran: what makes seconds, whatever proposes."""
    found = [f"{each['dtype']}, {each['runtime']}" for each in provenances if "runtime" in each]
    return "; ".join(dict.fromkeys(found))


def _many(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def summarized(provenances: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the different values of every fact, and of how many runs if there are several."""
    flat = [_flat(each) for each in provenances]
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


def _flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Name what is within: `versions.torch`; a command line is one string."""
    found: dict[str, str] = {}
    for name, value in provenance.items():
        if name == "argv" and isinstance(value, list):
            found["command"] = " ".join(str(each) for each in value)
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": str(each) for key, each in value.items()}
        else:
            found[name] = str(value)
    return found


def shared(collection: Collection) -> dict[str, str]:
    """Return the options that all arms have, with the same value, unless that is none."""
    first, *others = [arm.options for arm in collection.arms]
    return {
        name: _plain(value)
        for name, value in first.items()
        if value is not None and all(name in each and each[name] == value for each in others)
    }


def runs(collection: Collection) -> list[tuple[str, str, int, str]]:
    return [
        (setting.label, arm.label, seed, _below(run.path, collection.folder))
        for setting in collection.settings
        for arm in setting.arms
        for seed, run in arm.runs.items()
    ]


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def listed(values: Sequence[Any]) -> str:
    more = f"; and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else ""
    return "; ".join(_plain(value) for value in values[:MAX_VALUES]) + more


def _plain(value: Any) -> str:
    text = "none" if value is None else str(value)
    half = LONGEST_VALUE // 2
    return text if len(text) <= LONGEST_VALUE else f"{text[: half - 3]}...{text[-half:]}"
