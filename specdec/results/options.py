"""The options that a run heeded: what they are called, and what two runs must share to be one.

A configuration holds more than a run uses: a gamma for a proposer that drafts nothing, a draft
model for n-grams. Two runs are the same run if they agree in what both of them use: in numbers by
value, in files by content, in plug-ins by their class and, from outside of `specdec`, by its code.
How a value is written, where a file lies and what a plug-in is called decide nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specdec.core.escapes import unescaped
from specdec.core.plug_ins import is_ours, plug_in_name

Options = Mapping[str, Any]

PLUG_INS = ("proposer", "tree", "verification", "cache", "pace", "online")
NODES = ("verifier", "prompts", "sampling")
VALUES = (
    *(
        "max_new_tokens",
        "stop_strings",
        "ignore_eos",
        "log_probs",
        "batch",
        "device",
        "dtype",
        "attention",
        "runtime",
    ),
    "seed",
)
SIDE = (
    "proposer.",
    "tree.",
    "verification.",
    "pace.",
    "draft.",
    "training.",
    "online.",
)  # what belongs to one of compared arms
# A proposer's arguments that are other nodes, unless it has others.
HOMES = {"tree": "tree", "model": "draft", "gamma": "tree.gamma", "seed": "seed"}
DERIVED = {"vocabulary_of"}  # an argument of our loader that follows from other options
TARGET = "_target_"
CACHE = "verifier.cache"
SAME_TOKENS = (("draft.vocabulary", "same"), ("proposer.model.vocabulary", "same"))
EXPERTS = "experts"
PATHS = ("path", "held_out_path", "init_path", "tokenizer_path")  # that a revision may be of
PROCESSORS = "sampling.processors."
PARTS = "proposer.parts."
LOSS = "online.loss."
INNER = ("proposer.inner", "proposer.rule")  # the parts of a cascade
NO_PROPOSER = "none"  # whose texts are the same under any rule
NO_PACE = "fixed"  # which older runs, that do not say, had
LONGEST_NAME = 80


def options(plain: Options) -> dict[str, Any]:
    """Return what a run of `decode` or an arm of `compare` uses, by option.

    Plug-ins bear the names by which they were chosen.

    Args:
        plain: all of its options, a mapping for each node, as `config.yaml` holds them.
    """
    choices = plain.get("choices") or {}
    found = _heeded(plain)
    targets = {group: found[f"{group}.{TARGET}"] for group in _groups(found)}
    names = {group: choices.get(group) or plug_in_name(targets[group]) for group in targets}
    used = {name: value for name, value in found.items() if not name.endswith(TARGET)}
    for name, value in found.items():
        node, _, last = name.rpartition(".")
        is_part = node in INNER or name.startswith((PROCESSORS, PARTS, LOSS))
        if last == TARGET and is_part:
            names[node] = plug_in_name(str(value))
    return dict(sorted({**used, **names}.items()))


def targets(plain: Options) -> dict[str, str]:
    """Return the `_target_` of everything that a run builds, by the node that has it."""
    found = _heeded(plain).items()
    return {name.removesuffix(f".{TARGET}"): str(v) for name, v in found if name.endswith(TARGET)}


def known_by(plain: Options, files: Options, code: Options) -> dict[str, Any]:
    """Return what two runs share if and only if they would decode the same.

    Args:
        plain: all options; see `options`.
        files: digests of the files that options name, by option; see `files_of`.
        code: digests of the plug-ins that are not of `specdec`, by node.
    """
    heeded = _heeded(plain)
    if not heeded[EXPERTS]:  # a run that does not count is the run that it was before one could
        del heeded[EXPERTS]
    found = {
        name: _by_content(name, value, files)
        for name, value in heeded.items()
        if not is_known(name, heeded, files)
    }
    return {**found, **{f"{name}.code": digest for name, digest in code.items()}}


def proposes_nothing(plain: Options) -> bool:
    """Whether a run is autoregressive decoding, which speed is compared with."""
    return plug_in_name(str(plain["proposer"][TARGET])) == NO_PROPOSER


def _heeded(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return options and targets, by name; numbers that are equal are written alike."""
    found: dict[str, Any] = {name: plain[name] for name in VALUES}
    found[EXPERTS] = plain.get(EXPERTS, False)  # which older runs do not say
    for node in NODES:
        found |= dict(_flat(node, plain[node]))
    found = dict(_cache(found))
    for name in ("prompts.template_options", "prompts.roles"):
        if found.get(name, ()) is None:  # as if none were given
            del found[name]
    strings = found["stop_strings"]
    if isinstance(strings, list):
        found["stop_strings"] = [unescaped(str(each)) for each in strings]
    found |= dict(_other_tokens(_proposer(plain, plain["proposer"])))
    if plug_in_name(found[f"proposer.{TARGET}"]) != NO_PROPOSER:
        rule = plain["verification"]["rule"]
        found[f"verification.{TARGET}"] = rule[TARGET]
        found |= dict(_flat("verification.rule", {n: v for n, v in rule.items() if n != TARGET}))
        found["verification.allow_lossy"] = plain["verification"]["allow_lossy"]
        found["judges"] = plain["judges"]
        pace = plain.get("pace") or {}
        if pace and plug_in_name(str(pace[TARGET])) != NO_PACE:
            found |= dict(_flat("pace", pace))
    found |= dict(_online(plain))
    found |= _training(plain.get("training"), found)
    for node in ("verifier", "draft"):  # unless one of the models has another
        for name in VALUES:
            if found.get(f"{node}.{name}") == plain[name]:
                found.pop(f"{node}.{name}", None)
    return {name: normal(value) for name, value in sorted(found.items())}


def _cache(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield options with the policy of the verifier's cache as a node of its own, if it has one.

    Without a limit any policy does the same: nothing.
    """
    limits = [found.get(f"{CACHE}.{name}") for name in ("max_tokens", "max_bytes")]
    for name, value in found.items():
        if not name.startswith(f"{CACHE}."):
            yield name, value
        elif any(limit is not None for limit in limits):
            yield name.removeprefix("verifier."), value


def _training(training: Mapping[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Return how a run's own heads were trained, which tells more than the folder they are in."""
    if training is None:
        return {}
    for name in [name for name, value in found.items() if _is_below(value, training["output"])]:
        del found[name]
    return {f"training.{name}": value for name, value in training.items() if name != "output"}


def _is_below(value: object, folder: str) -> bool:
    return isinstance(value, str) and (value == folder or value.startswith(f"{folder}/"))


def _proposer(
    plain: Mapping[str, Any], node: Mapping[str, Any], at: str = "proposer"
) -> Iterator[tuple[str, Any]]:
    """Yield a proposer's options; what it has from another node bears that node's name."""
    for name, value in node.items():
        parts = value if name == "parts" and isinstance(value, list) else ()
        if parts and all(isinstance(part, Mapping) for part in parts):
            for place, part in enumerate(parts):
                yield from _proposer(plain, part, f"{at}.parts.{place}")
            continue
        home = HOMES.get(name, "")
        own = not home or value != _at(plain, home)
        yield from _flat(f"{at}.{name}" if own else home, value)


def whole(name: str) -> str:
    """Name an option of a part as that of a proposer which is whole."""
    return re.sub(r"^proposer\.parts\.\d+", "proposer", name)


def _other_tokens(found: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Leave out that a draft has the verifier's tokens: older runs do not say so."""
    return (each for each in found if each not in SAME_TOKENS)


def _online(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield how the proposer learns while it drafts; nothing if it does not.

    How often that is kept decides no number.
    """
    for name, value in _flat("online", plain.get("online") or {}):
        same_seed = name == "online.seed" and value == plain["seed"]
        if not same_seed and name != "online.save_prompts":
            yield name, value


def _at(plain: Mapping[str, Any], name: str) -> Any:
    found: Any = plain
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield options one by one, however deep they lie."""
    if isinstance(value, list) and any(isinstance(e, Mapping) and TARGET in e for e in value):
        for place, each in enumerate(value):  # parts of one's own, each with its code
            yield from _flat(f"{name}.{place}", each)
        return
    if not isinstance(value, Mapping):
        # Heads without a verifier of their own are given the arm's.
        if not (whole(name) == "proposer.verifier" and value is None):
            yield name, value
        return
    ours = is_ours(str(value.get(TARGET, "")))
    for key, each in value.items():
        if not (ours and key in DERIVED):
            yield from _flat(f"{name}.{key}", each)


def _groups(found: Options) -> list[str]:
    return [group for group in PLUG_INS if f"{group}.{TARGET}" in found]


def normal(value: object) -> object:
    """Write 1.0 as 1: it is the same number. True is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [normal(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): normal(each) for key, each in value.items()}
    return value


def _by_content(name: str, value: Any, files: Options) -> Any:
    if name in files:
        return {"content": files[name]}
    if isinstance(value, list):
        return [_by_content(f"{name}.{place}", each, files) for place, each in enumerate(value)]
    return value


def is_known(name: str, every: Options, files: Options) -> bool:
    """Whether an option is a revision of what is known by content: its commit, however it is named.

    Args:
        name: of the option, one of `every`.
        every: all options.
        files: digests of the files that options name; of a Hub's, its commit.
    """
    node, _, last = name.rpartition(".")
    paths = [each for each, value in every.items() if value is not None and _is_path(each, node)]
    return last == "revision" and bool(paths) and files.keys() >= {*paths}


def _is_path(name: str, node: str) -> bool:
    parent, _, last = name.rpartition(".")
    return parent == node and last in PATHS


def identity(known: Options) -> str:
    """Return 12 hex digits that two runs share if and only if `known_by` is the same of both."""
    text = json.dumps(known, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_name(used: Options, keys: Sequence[str], identity: str) -> str:
    """Name a run by some of its options, fit for a folder; what it does not use is left out.

    The first digits of its identity stand behind them.
    """
    parts = [_part(key, used[key]) for key in keys if key in used]
    readable = ",".join(dict.fromkeys(parts))[:LONGEST_NAME].strip(",")
    return f"{readable or 'default'}-{identity[:8]}"


def _part(key: str, value: Any) -> str:
    text = f"{value}" if key in PLUG_INS else f"{key.rpartition('.')[2]}={value}"
    plain = re.sub(r"[][()'\"\s]", "", text.replace(",", "-"))
    return re.sub(r"[^\w.=+-]", "_", plain).lstrip(".")
