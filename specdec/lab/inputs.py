"""What options name, looked at before anything is loaded: models, heads, prompts.

A sweep looks at every distinct value once, when it is planned, however many jobs have it; what is
found to be wrong then costs a second, and not the night that it takes until its turn comes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from specdec.cache.policy import CachePolicy
from specdec.core.digest import Signature, signature
from specdec.core.errors import Unfit
from specdec.core.narrowing import is_mapping
from specdec.core.room import Room
from specdec.decoding.request import Request, require_decodable
from specdec.decoding.turns import rendered_before
from specdec.lab.option_names import named_options
from specdec.lab.part import TARGET, Part
from specdec.lab.prompt_options import PromptOptions, chosen
from specdec.lab.spec import ArmSpec, ModelPart, ProposerPart
from specdec.lm.check_split import require_split_options
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.fingerprint import require_tokens_of
from specdec.lm.loadable import require_loadable, room_for, vocabulary_size, width
from specdec.lm.routing import require_experts, require_plain_steps
from specdec.prompts import Prompt
from specdec.proposer.tree_fit import heads_config
from specdec.runtime.choice import EAGER

Files = tuple[Signature, ...]


def require_inputs(spec: ArmSpec) -> None:
    """Refuse models that cannot be loaded, and prompts that the verifier cannot read.

    Raises:
        UserError: with the option and its value; heads of a verifier of another size are Unfit.
    """
    require_models(spec)
    if spec.experts:
        require_counted_experts(spec.verifier)
    require_prompts(spec.prompts, spec.verifier)


def require_models(spec: ArmSpec) -> None:
    """Refuse a verifier, and what a proposer loads, as far as that shows without their weights."""
    require_model(spec.verifier)
    for leaf in spec.proposer.leaves:
        _require_proposer(leaf, spec)
        if leaf.inner is not None:
            _require_proposer(leaf.inner, spec)


def _require_proposer(proposer: ProposerPart, spec: ArmSpec) -> None:
    for model in proposer.models:
        require_model(model)
    if proposer.has_heads:
        Checkpoint.of(proposer.options, f"{proposer.at}.path")
        if not proposer.get("force", False):
            require_heads_of(proposer.get("path"), spec.verifier.checkpoint)
    elif proposer.has_layers:
        _require_layers(spec)
    elif not proposer.models:
        content = json.dumps(proposer.options, sort_keys=True, default=str)
        verifier = spec.verifier.checkpoint
        _require_made(_Node(content, _texts_of(proposer), verifier, verifier.files, proposer))


def _require_layers(spec: ArmSpec) -> None:
    """Refuse a verifier whose layers cannot draft, as it is loaded, and an exit of another size."""
    verifier, proposer = spec.verifier, spec.proposer
    runtime = str(verifier.get("runtime", EAGER))
    others = {name: verifier.get(name) for name in ("device", "tp_plan")}
    require_split_options(f"proposer={proposer.name}", _cache_of(verifier), runtime, **others)
    if proposer.path is not None:
        Checkpoint.of(proposer.options, "proposer.path")
        if not proposer.get("force", False):
            require_heads_of(proposer.path, verifier.checkpoint)


@dataclass(frozen=True)
class _Node:
    """A proposer's options; equal ones are built once, as long as their file is the same."""

    text: str
    there: Files
    verifier: Checkpoint
    model_there: Files
    proposer: ProposerPart = field(compare=False)


@lru_cache(maxsize=256)
def _require_made(node: _Node) -> None:
    proposer: object = node.proposer.build()
    if getattr(proposer, "tokenizer_digest", None) is not None:
        require_tokens_of(node.verifier.tokenizer, proposer)


def require_model(model: ModelPart) -> None:
    """Refuse a model that `specdec.lm.load.load` could not load."""
    given: dict[str, Any] = {n: value for n, value in model.options.items() if n != TARGET}
    if "cache" in given:
        given["cache"] = _cache_of(model)
    with named_options(model.names):
        require_loadable(**given)


def _cache_of(model: ModelPart) -> object:
    """Return the policy of a model's cache; what options say instead, if that is no policy."""
    given = model.get("cache")
    if not is_mapping(given):
        return given
    return Part[CachePolicy](f"{model.at}.cache", given, points=model.points).build()


def require_counted_experts(verifier: ModelPart) -> None:
    """Refuse a verifier whose experts cannot be counted, as far as that shows without weights.

    Raises:
        UserError: it is dense, or its steps are not read by one forward of its own code.
    """
    option, runtime = "experts=true", str(verifier.get("runtime", EAGER))
    require_experts(option, verifier.checkpoint.config)
    require_plain_steps(option, runtime, _cache_of(verifier))


def require_heads_of(path: object, verifier: Checkpoint) -> None:
    """Refuse heads that no verifier of this size can have; the rest shows when it is loaded."""
    theirs, ours = heads_config(path).get("hidden_size"), width(verifier)
    if isinstance(theirs, int) and theirs != ours:
        raise Unfit(
            f"proposer.path={path!r}: heads of another verifier, of hidden size {theirs};"
            f" {verifier.called} has {ours}"
        )


def require_prompts(prompts: PromptOptions, verifier: ModelPart) -> None:
    """Refuse prompts that cannot be read, rendered or decoded, not even after empty answers."""
    reader = verifier.checkpoint
    room = room_for(reader, verifier.max_length)
    there = _files(prompts.path)
    _require_prompts(json.dumps(asdict(prompts)), there, reader, reader.files, room)


@lru_cache(maxsize=256)
def _require_prompts(
    options: str, there: Files, verifier: Checkpoint, model_there: Files, room: Room
) -> None:
    prompts = PromptOptions(**json.loads(options))
    tokenizer, vocab_size = verifier.tokenizer, vocabulary_size(verifier)
    start = () if room.source is None else (0,)  # the decoder's first token, whichever that is

    def request(prompt: Prompt, answers: Sequence[str]) -> Request:
        found = rendered_before(start, prompt, answers, tokenizer, prompts.rendering)
        return Request(prompt.prompt_id, found.token_ids, turn=len(answers), where=prompt.where)

    requests = chosen(prompts.load(), prompts, request, room.too_long).requests
    require_decodable(requests, room, vocab_size, tokenizer)


def _texts_of(proposer: ProposerPart) -> Files:
    """Return what changes when a file or folder does that a proposer copies from."""
    return (*_files(proposer.get("path")), *_files(proposer.get("corpus_path")))


def _files(path: object) -> Files:
    """Return what changes when a file or folder does; what is not there has nothing."""
    there = isinstance(path, str) and bool(path) and Path(path).exists()
    return signature(Path(str(path))) if there else ()
