"""Which training a configuration asks for: what decides on its weights, by option."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from specdec.core.plug_ins import code_digest, plug_in_name
from specdec.lab.identity import content_of, place_of, revision_of
from specdec.results.options import TARGET, is_known, normal
from specdec.results.provenance import provenance
from specdec.training.record import Record
from specdec.training.trainer import FREE

# What of a node is another node's, or decides on nothing that is trained or measured.
LEFT_OUT = {
    "train": {"states", "loss", "acceptance", "reading", "data_path", "held_out_path"},
    "trainer": FREE,
    "data": {"cache_path", "tokens_path"},
    "distill": {"batch", "path"},
    "evaluation": {"tree", "sampling"},
    "tuning": {"training"},
    "verifier": {"device", "field", "vocabulary_of"},
}
NAMED = ("train", "loss", "tree")  # nodes that are chosen by a name
# What may be on a Hub, and as what.
ON_HUB = {
    **dict.fromkeys(("verifier.path", "train.init_path", "train.tokenizer_path"), "model"),
    **dict.fromkeys(("data.path", "data.held_out_path", "evaluation.prompts"), "dataset"),
}
# Names that a file might have by chance.
NO_FILES = {"seed", "dtype", "verifier.dtype", "verifier.attention", "trainer.mixed_precision"}
NO_FILES |= {"verifier.revision", "train.revision"}
NO_FILES |= {f"data.{name}" for name in ("split", "held_out_split", "config", "revision", "field")}
NO_FILES_BELOW = ("data.roles.", "data.template_options.")


def record_of(config: DictConfig) -> Record:
    """Return what the training of a configuration is, and what it runs under."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    told = dict(_told(plain))
    files = _files(told)
    code = {name: digest for name, target in _targets(plain) if (digest := code_digest(target))}
    known = {name: normal(v) for name, v in told.items() if not is_known(name, told, files)}
    known |= dict(_targets(plain))
    known |= {name: {"content": content} for name, content in files.items()}
    known |= {f"{name}.code": digest for name, digest in code.items()}
    facts = provenance(_device(), str(config.verifier.dtype), str(config.verifier.attention))
    facts |= {"cwd": os.getcwd(), "files": files, "code": code}
    return Record(known, told, OmegaConf.to_yaml(_anywhere(plain)), facts)


def _nodes(plain: Mapping[str, Any]) -> list[str]:
    """Return the nodes that a training heeds; a language model from scratch needs no verifier."""
    if "states" not in plain["train"]:
        return ["train", "trainer"]
    nodes = ["train", "loss", "trainer", "data", "verifier", "evaluation", "tree", "sampling"]
    nodes += ["distill"] if plain["distill"]["path"] is not None else []
    return nodes + (["tuning"] if plain["joint"] else [])


def _told(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "num_processes", int(os.environ.get("WORLD_SIZE", "1"))
    yield "joint", plain["joint"]
    for name in ("path", "held_out_path", *plain["reading"]):
        unused = name == "held_out_share" and not _shares(plain["data"])
        if name in plain["data"] and name not in LEFT_OUT["data"] and not unused:
            yield from _flat(f"data.{name}", plain["data"][name])
    for node in _nodes(plain):
        if node in NAMED:
            yield node, plug_in_name(plain[node][TARGET])
        for name, value in _flat(node, plain[node]):
            left_out = LEFT_OUT.get(node, ())
            if not name.endswith(TARGET) and name.split(".")[1] not in left_out:
                yield name, value


def _shares(data: Mapping[str, Any]) -> bool:
    """Whether a share of what is trained on is held out."""
    return data["held_out_path"] is None and data["held_out_split"] in (None, data["split"])


def _targets(plain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for node in _nodes(plain):
        if node in NAMED:
            yield node, plain[node][TARGET]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(f"{name}.{key}", each)
    else:
        yield name, value


def _files(told: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of every file and folder that options name; of a Hub's, its commit."""
    texts = {n: v for n, v in told.items() if isinstance(v, str) and _may_be_file(n)}
    found = {
        name: content_of(value, ON_HUB.get(name), told.get(revision_of(name)))
        for name, value in texts.items()
    }
    return {name: content for name, content in found.items() if content is not None}


def _may_be_file(name: str) -> bool:
    return name not in (*NO_FILES, *NAMED) and not name.startswith(NO_FILES_BELOW)


def _anywhere(plain: dict[str, Any]) -> DictConfig:
    """Return the configuration with files that are found from any folder."""
    found = OmegaConf.create(plain)
    for node in ("verifier", "data", "train", "tree", "distill", "evaluation"):
        for name, value in _flat(node, plain[node]):
            is_file = isinstance(value, str) and not value.startswith("zoo:") and _may_be_file(name)
            if is_file and not name.endswith(TARGET) and place_of(value) is not None:
                OmegaConf.update(found, name, str(Path(value).resolve()))
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
