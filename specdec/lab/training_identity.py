"""Which training a configuration asks for: what decides on its weights, by option."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from specdec.core.narrowing import is_mapping
from specdec.core.plug_ins import code_digest, plug_in_name
from specdec.core.values import CandidateSource
from specdec.lab.identity import content_of, place_of, revision_of
from specdec.lab.spec import with_options
from specdec.lab.training_spec import TrainingSpec
from specdec.lm.devices import training_device
from specdec.results.options import TARGET, is_known, normal
from specdec.results.provenance import provenance
from specdec.results.saved_options import to_yaml
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
    "verifier": {"device", "vocabulary_of"},
}
# Without a value there are none, as in trainings from before there were such options.
OF_EXPERTS = {
    f"train.{name}" for name in ("num_experts", "experts_per_token", "router_aux_loss_coef")
}
NAMED = ("train", "loss", "tree")  # nodes that are chosen by a name
# What may be on a Hub, and as what.
ON_HUB = {
    **dict.fromkeys(("verifier.path", "train.init_path", "train.tokenizer_path"), "model"),
    **dict.fromkeys(("data.path", "data.held_out_path", "evaluation.prompts"), "dataset"),
}
# Names that a file might have by chance.
NO_FILES = {
    *("seed", "dtype", "verifier.dtype", "verifier.attention", "verifier.runtime"),
    "train.attention",
    "trainer.mixed_precision",
    *("verifier.revision", "train.revision"),
    *(f"data.{name}" for name in ("split", "held_out_split", "config", "revision", "field")),
}
NO_FILES_BELOW = ("data.roles.", "data.template_options.")


def record_of(spec: TrainingSpec) -> Record:
    """Return what a training is, and what it runs under."""
    said = dict(_said(spec))
    files = _files(said)
    targets = dict(_targets(spec))
    code = {name: found for name, each in targets.items() if (found := code_digest(each))}
    known = {name: normal(v) for name, v in said.items() if not is_known(name, said, files)}
    known |= targets
    known |= {name: {"content": content} for name, content in files.items()}
    known |= {f"{name}.code": found for name, found in code.items()}
    how = (str(spec.verifier.get(name)) for name in ("dtype", "attention", "runtime"))
    circumstances = provenance(torch.device(training_device()), *how)
    circumstances |= {"cwd": os.getcwd(), "files": files, "code": code}
    return Record(known, said, to_yaml(_anywhere(spec.options)), circumstances)


def _nodes(spec: TrainingSpec) -> list[str]:
    """Return the nodes that a training heeds; a language model from scratch needs no verifier."""
    if spec.source is CandidateSource.NOTHING:
        return ["train", "trainer"]
    nodes = ["train", "loss", "trainer", "data", "verifier", "evaluation", "tree", "sampling"]
    nodes += ["distill"] if spec.options["distill"]["path"] is not None else []
    return nodes + (["tuning"] if spec.joint else [])


def _said(spec: TrainingSpec) -> Iterator[tuple[str, Any]]:
    yield "num_processes", int(os.environ.get("WORLD_SIZE", "1"))
    yield "joint", spec.joint
    options = spec.options
    for name in ("path", "held_out_path", *options["reading"]):
        unused = name == "held_out_share" and not _shares(spec.data)
        if name in spec.data and name not in LEFT_OUT["data"] and not unused:
            yield from _flat(f"data.{name}", spec.data[name])
    for node in _nodes(spec):
        if node in NAMED:
            yield node, plug_in_name(options[node][TARGET])
        for name, value in _flat(node, options[node]):
            left_out = LEFT_OUT.get(node, ())
            if name in OF_EXPERTS and value is None:
                continue
            if not name.endswith(TARGET) and name.split(".")[1] not in left_out:
                yield name, value


def _shares(data: Mapping[str, Any]) -> bool:
    """Whether a share of what is trained on is held out."""
    return data["held_out_path"] is None and data["held_out_split"] in (None, data["split"])


def _targets(spec: TrainingSpec) -> Iterator[tuple[str, str]]:
    for node in _nodes(spec):
        if node in NAMED:
            yield node, spec.options[node][TARGET]


def _flat(name: str, value: object) -> Iterator[tuple[str, Any]]:
    if is_mapping(value) and value:
        for key, each in value.items():
            yield from _flat(f"{name}.{key}", each)
    else:
        yield name, value


def _files(said: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of every file and folder that options name; of a Hub's, its commit."""
    texts = {n: v for n, v in said.items() if isinstance(v, str) and _may_be_file(n)}
    found = {
        name: content_of(value, ON_HUB.get(name), said.get(revision_of(name)))
        for name, value in texts.items()
    }
    return {name: content for name, content in found.items() if content is not None}


def _may_be_file(name: str) -> bool:
    return name not in (*NO_FILES, *NAMED) and not name.startswith(NO_FILES_BELOW)


def _anywhere(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options with files that are found from any folder."""
    places: dict[str, str] = {}
    for node in ("verifier", "data", "train", "tree", "distill", "evaluation"):
        for name, value in _flat(node, options[node]):
            is_file = isinstance(value, str) and not value.startswith("zoo:") and _may_be_file(name)
            if is_file and not name.endswith(TARGET) and place_of(value) is not None:
                places[name] = str(Path(value).resolve())
    return with_options(options, places)
