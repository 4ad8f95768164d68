"""What a run is called, and which run it is: by the options it uses and the files they name."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from specdec.core.digest import digest
from specdec.report.options import identity, options, run_name, stem_of_target
from specdec.training.facts import training_tokens

WRITTEN = {"training.distill.path"}


def files_of(used: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of every file and folder that options name; what is on a Hub has none.

    What a training writes itself has none either: it follows from other options, and is not there
    when the run gets its name.
    """
    found: dict[str, str] = {}
    for name, value in used.items():
        named = name.endswith("path") and name not in WRITTEN and isinstance(value, str)
        place = _place(value) if named else None
        if place is not None:
            found[name] = digest(place)
    return found


def _place(value: str) -> Path | None:
    path = Path(value)
    if value.startswith("zoo:"):
        zoo = Path(str(files("specdec.zoo")))
        name = value.removeprefix("zoo:")
        path = zoo / name if (zoo / name).exists() else zoo / f"{name}.jsonl"
    return path if value and path.exists() else None


def training_tokens_of(config: DictConfig) -> int | None:
    """Return on how many tokens the heads or the draft of a run were trained, if that is known."""
    model = config.proposer.get("model")
    path = config.proposer.get("path") if model is None else model.path
    place = _place(path) if isinstance(path, str) else None
    return None if place is None else training_tokens(place)


def draft_of(config: DictConfig) -> str:
    """Name what candidates come from, whatever tree they make: `draft_model zoo:draft float32`."""
    proposer = config.proposer
    node = proposer.model if "model" in proposer else proposer
    known = [stem_of_target(proposer._target_), node.get("path"), node.get("dtype")]
    return " ".join(str(each) for each in known if each is not None)


def identity_of(config: DictConfig) -> str:
    """Return what two runs share if and only if they would decode the same."""
    used = options(config)
    return identity({**used, "files": files_of(used)})


def name_of(config: DictConfig, keys: Sequence[str]) -> str:
    """Name a run of a sweep by the options that are swept, and by its identity."""
    return run_name(options(config), keys, identity_of(config))
