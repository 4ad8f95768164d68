"""The options that a run heeded, under the names that the command line knows them by.

A configuration holds more than a run uses: a gamma for a proposer that drafts nothing, a draft
model for n-grams. Two runs are the same run if they agree in what both of them use.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

Options = Mapping[str, Any]

PLUG_INS = ("proposer", "tree", "verification")
NODES = ("verifier", "prompts", "sampling")
VALUES = ("max_new_tokens", "stop_strings", "batch", "device", "dtype", "attention", "seed")
SIDE = (
    "proposer.",
    "tree.",
    "verification.",
    "draft.",
    "training.",
)  # what belongs to one of compared arms
# A proposer's arguments that other nodes are the home of.
HOMES = {"tree": "tree", "model": "draft", "gamma": "tree.gamma", "seed": "seed"}
GIVEN = {"_target_", "field", "vocabulary_of", "verifier"}  # no options, or another's
LONGEST_NAME = 80


def options(config: DictConfig) -> dict[str, Any]:
    """Return what a run of `decode` or an arm of `compare` uses, resolved, by option."""
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    found = {name: plain[name] for name in VALUES}
    found |= {name: value for node in NODES for name, value in _flat(node, plain[node])}
    found |= dict(_proposer(plain["proposer"]))
    if found["proposer"] != "none":  # whose texts are the same under any rule
        rule = plain["verification"]["rule"]
        found["verification"] = stem_of_target(rule["_target_"])
        found |= dict(_flat("verification.rule", rule))
        found["verification.allow_lossy"] = plain["verification"]["allow_lossy"]
        found["judges"] = plain["judges"]
    found |= _training(plain.get("training"), found)
    for node in ("verifier", "draft"):  # unless one of the models is told otherwise
        for name in VALUES:
            if found.get(f"{node}.{name}") == plain[name]:
                found.pop(f"{node}.{name}", None)
    return dict(sorted(found.items()))


def _training(told: Mapping[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Return how a run's own heads were trained, which tells more than the folder they are in."""
    if told is None:
        return {}
    for name in [name for name, value in found.items() if _is_below(value, told["output"])]:
        del found[name]
    return {f"training.{name}": value for name, value in told.items() if name != "output"}


def _is_below(value: object, folder: str) -> bool:
    return isinstance(value, str) and (value == folder or value.startswith(f"{folder}/"))


def _proposer(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "proposer", stem_of_target(node["_target_"])
    for name, value in node.items():
        if name in GIVEN:
            continue
        home = HOMES.get(name, f"proposer.{name}")
        if isinstance(value, Mapping):
            if home in PLUG_INS:
                yield home, stem_of_target(value["_target_"])
            yield from _flat(home, value)
        else:
            yield home, value


def _flat(prefix: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if name not in GIVEN:
            yield f"{prefix}.{name}", value


def stem_of_target(target: str) -> str:
    """Return the module that a class or its constructor lives in: what an option calls it."""
    parts = target.split(".")
    classes = [number for number, part in enumerate(parts) if part[:1].isupper()]
    return parts[classes[0] - 1 if classes else -2]


def identity(used: Options) -> str:
    """Return 12 hex digits that two runs share if and only if they use the same options."""
    text = json.dumps(used, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_name(used: Options, keys: Sequence[str], known_by: str) -> str:
    """Name a run by some of its options, fit for a folder; what it does not use is left out.

    The first digits of its identity, `known_by`, stand behind them.
    """
    parts = [_part(key, used[key]) for key in keys if key in used]
    readable = ",".join(dict.fromkeys(parts))[:LONGEST_NAME].strip(",")
    return f"{readable or 'default'}-{known_by[:8]}"


def _part(key: str, value: Any) -> str:
    text = f"{value}" if key in PLUG_INS else f"{key.rpartition('.')[2]}={value}"
    plain = re.sub(r"[][()'\"\s]", "", text.replace(",", "-"))
    return re.sub(r"[^\w.=+-]", "_", plain).lstrip(".")
