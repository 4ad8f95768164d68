"""What a run is called, and which run it is: by the options it uses, their files, and its code."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

from specdec.core.digest import digest
from specdec.core.narrowing import is_list
from specdec.core.plug_ins import code_digest
from specdec.lab.spec import ArmSpec, ProposerPart
from specdec.replaying.costs import ProposerKey
from specdec.results.options import (
    INNER,
    PLUG_INS,
    TARGET,
    VALUES,
    identity,
    known_by,
    options,
    run_name,
    targets,
    whole,
)
from specdec.training.data.text import ZOO, zoo_digest
from specdec.training.trained_folder import training_tokens
from specdec.zoo import ZOO_FOLDER

WRITTEN = {"training.distill.path"}
DATA = ("prompts", "training.data")
# Words that a folder might have by chance.
BY_NAME = ("template_options", "roles")  # which hold what a user names
REVISED = (
    *("prompts", "verifier", "draft", "proposer", "proposer.model"),
    *("proposer.inner", "proposer.inner.model"),
    *("training.verifier", "training.train", "training.data"),
)
NO_FILES = {
    *(*PLUG_INS, *VALUES, *INNER, "judges", "prompts.chat_template"),
    *(f"proposer.inner.model.{name}" for name in VALUES),
    *(f"{node}.{name}" for node in DATA for name in ("split", "config", "field")),
    *(f"{node}.revision" for node in REVISED),
    *("online.loss", "online.swap"),
}
NO_FILES_BELOW = tuple(f"{node}.{name}." for node in DATA for name in BY_NAME)
# What may be on a Hub, and as what.
MODELS = (
    *("verifier", "draft", "proposer", "proposer.model", "training.verifier"),
    *("proposer.inner", "proposer.inner.model"),
)
ON_HUB = {
    **{f"{node}.path": "model" for node in MODELS},
    **{f"{node}.path": "dataset" for node in DATA},
    "training.train.init_path": "model",
}


def files_of(used: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of every file and folder that options name; of a Hub's, its commit.

    What a training writes itself has none: it follows from other options, and is not there when
    the run gets its name.
    """
    found: dict[str, str] = {}
    for name, value in _texts(used):
        if whole(name) not in NO_FILES | WRITTEN and not name.startswith(NO_FILES_BELOW):
            known = content_of(value, ON_HUB.get(whole(name)), used.get(revision_of(name)))
            if known is not None:
                found[name] = known
    return found


def revision_of(name: str) -> str:
    """Name the option that says which state of what another names is meant."""
    return f"{name.rpartition('.')[0]}.revision"


def _texts(used: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in used.items():
        if isinstance(value, str):
            yield name, value
        elif is_list(value):
            yield from _texts({f"{name}.{place}": each for place, each in enumerate(value)})


def content_of(value: str, on_hub: str | None = None, revision: object = None) -> str | None:
    """Return a digest of what a value names; None if that is no file, nor anything on a Hub."""
    if value in ZOO:
        return zoo_digest(value)
    place = place_of(value)
    if place is not None:
        return digest(place)
    return None if on_hub is None or not value else commit_of(value, on_hub, revision)


def place_of(value: str) -> Path | None:
    """Return the file or folder that a value names, if there is one."""
    path = Path(value)
    if value.startswith("zoo:"):
        path = ZOO_FOLDER / value.removeprefix("zoo:")
        path = path if path.exists() else Path(f"{path}.jsonl")
    try:
        return path if value and path.exists() else None
    except (OSError, ValueError):  # a text that no file can be called
        return None


@lru_cache(maxsize=64)
def commit_of(name: str, kind: str, revision: object = None) -> str | None:
    """Return the commit that a name on the Hub stands for; offline, the one that was downloaded."""
    try:
        folder = repo_folder_name(repo_id=name, repo_type=kind)
    except ValueError:  # nothing on a Hub is called so
        return None
    if not isinstance(revision, str | None):  # a number, which is refused where it is loaded
        return None
    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10).sha
    except Exception:  # no such name, no permission, no network in any of its ways
        there, wanted = Path(constants.HF_HUB_CACHE) / folder, revision or "main"
        ref = there / "refs" / wanted
        if ref.is_file():
            return ref.read_text(encoding="utf-8").strip()
        return wanted if (there / "snapshots" / wanted).is_dir() else None


def code_of(spec: ArmSpec) -> dict[str, str]:
    """Return digests of the plug-ins that a run uses and that are not of `specdec`, by node."""
    found = targets(spec.options)
    if "verification" in found:
        found |= {f"judges.{name}": part.target for name, part in spec.judges.items()}
    known = {node: code_digest(target) for node, target in found.items()}
    return {node: each for node, each in known.items() if each is not None}


def training_tokens_of(proposer: ProposerPart) -> int | None:
    """Return on how many tokens the heads or the draft of a run were trained, if that is known."""
    place = None if proposer.path is None else place_of(proposer.path)
    return None if place is None else training_tokens(place)


def draft_of(proposer: ProposerPart) -> ProposerKey:
    """Tell what candidates come from, whatever tree they make: `draft_model zoo:draft float32`."""
    if proposer.parts:
        parts = [draft_of(part) for part in proposer.parts]
        own = {n: v for n, v in proposer.options.items() if n != "parts"}
        known = {**own, "code": code_digest(proposer.target), "parts": [p.known_by for p in parts]}
        names = " + ".join(part.name for part in parts)
        return ProposerKey(f"{proposer.name} {names}", identity(known))
    part = proposer.draft_model or proposer
    path = part.get("path") or part.get("corpus_path")
    words = [each for each in (proposer.name, path, part.get("dtype")) if each is not None]
    revision = part.get("revision")
    content = content_of(path, "model", revision) if isinstance(path, str) else None
    known = {
        TARGET: proposer.target,
        "code": code_digest(proposer.target),
        "content": [path, revision] if content is None else content,
        "trust_remote_code": part.get("trust_remote_code", False),
        "dtype": part.get("dtype"),
        "quantization": part.get("quantization"),
    }
    if not proposer.reads_same_tokens:  # what others are known by stays as it was
        known["vocabulary"] = part.get("vocabulary")
        words.append(part.get("vocabulary"))
    if proposer.has_layers:
        known |= {name: part.get(name) for name in ("exit_layer", "skipped_layers")}
    return ProposerKey(" ".join(map(str, words)), identity(known))


def materials_of(spec: ArmSpec) -> dict[str, dict[str, str]]:
    """Return what of a run's identity is none of its options: digests of files and of code."""
    return {"files": files_of(options(spec.options)), "code": code_of(spec)}


def identity_of(spec: ArmSpec) -> str:
    """Return what two runs share if and only if they would decode the same."""
    return identity(known_by(spec.options, **materials_of(spec)))


def name_of(spec: ArmSpec, keys: Sequence[str]) -> str:
    """Name a run of a sweep by the options that are swept, and by its identity."""
    return run_name(options(spec.options), keys, identity_of(spec))
