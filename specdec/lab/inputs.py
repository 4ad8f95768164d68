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

from omegaconf import DictConfig, OmegaConf

from specdec.core.digest import Signature, signature
from specdec.core.errors import Unfit
from specdec.decoding.request import Request, require_decodable
from specdec.lab.build import build
from specdec.lab.prompt_options import PromptOptions, chosen
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.load import context_length, require_loadable, vocabulary_size, width
from specdec.prompts import Prompt, render_turn
from specdec.proposer.tree_fit import heads_config

Files = tuple[Signature, ...]


def require_inputs(config: DictConfig) -> None:
    """Refuse models that cannot be loaded, and prompts that the verifier cannot read.

    Raises:
        UserError: with the option and its value; heads of a verifier of another size are Unfit.
    """
    require_models(config)
    require_prompts(config)


def require_models(config: DictConfig) -> None:
    """Refuse a verifier, and what a proposer loads, as far as that shows without their weights."""
    require_model(config.verifier)
    proposer = config.proposer
    models = [node for node in proposer.values() if is_model(node)]
    for node in models:
        require_model(node)
    if "verifier" in proposer:
        Checkpoint(proposer.path, proposer.get("revision"), field="proposer.path")
        if not proposer.get("force", False):
            require_heads_of(proposer.path, Checkpoint.of(config.verifier))
    elif not models:
        path = proposer.get("path")
        _require_made(_Node(OmegaConf.to_yaml(proposer, resolve=True), _files(path), proposer))


@dataclass(frozen=True)
class _Node:
    """A node of the configuration; equal ones are built once, as long as their file is the same."""

    text: str
    there: Files
    node: DictConfig = field(compare=False)


@lru_cache(maxsize=256)
def _require_made(proposer: _Node) -> None:
    build(proposer.node)


def require_model(node: DictConfig) -> None:
    """Refuse a node that `specdec.lm.load.load` could not load."""
    plain: Any = OmegaConf.to_container(node, resolve=True)
    require_loadable(**{name: value for name, value in plain.items() if name != "_target_"})


def is_model(value: object) -> bool:
    """Whether a node of the configuration is a language model."""
    return isinstance(value, DictConfig) and value.get("_target_") == "specdec.lm.load.load"


def require_heads_of(path: object, verifier: Checkpoint) -> None:
    """Refuse heads that no verifier of this size can have; the rest shows when it is loaded."""
    theirs, ours = heads_config(path).get("hidden_size"), width(verifier)
    if isinstance(theirs, int) and theirs != ours:
        raise Unfit(
            f"proposer.path={path!r}: heads of another verifier, of hidden size {theirs};"
            f" {verifier.called} has {ours}"
        )


def require_prompts(config: DictConfig) -> None:
    """Refuse prompts that cannot be read, rendered or decoded, not even after empty answers."""
    told, verifier = PromptOptions.of(config), Checkpoint.of(config.verifier)
    context = context_length(verifier, config.verifier.get("max_length"))
    there = _files(told.path)
    _require_prompts(json.dumps(asdict(told)), there, verifier, verifier.files, context)


@lru_cache(maxsize=256)
def _require_prompts(
    told: str, there: Files, verifier: Checkpoint, model_there: Files, context: int
) -> None:
    prompts = PromptOptions(**json.loads(told))
    tokenizer, vocab_size = verifier.tokenizer, vocabulary_size(verifier)

    def request(prompt: Prompt, answers: Sequence[str]) -> Request:
        token_ids = render_turn(prompt, answers, tokenizer, prompts.rendering).token_ids
        return Request(prompt.prompt_id, token_ids, turn=len(answers), where=prompt.where)

    requests = chosen(prompts.load(), prompts, request, context).requests
    require_decodable(requests, context, vocab_size, tokenizer)


def _files(path: object) -> Files:
    """Return what changes when a file or folder does; what is not there has nothing."""
    there = isinstance(path, str) and bool(path) and Path(path).exists()
    return signature(Path(str(path))) if there else ()
