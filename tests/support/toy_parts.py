"""Plug-ins as their YAML files describe them, and models for them that are the same everywhere.

Numbers may not depend on the processor: GPT-2 casts nothing to float32 when it computes in float64,
and numpy's uniform numbers are the same on all machines, as torch's normal ones are not.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from specdec.heads.base import DraftHeads, Heads
from specdec.lm.hf import HFCausalLM
from tests.support.families import tiny_model

CONFIGS = Path(__file__).parents[2] / "configs"


def stems(group: str) -> list[str]:
    """Name the plug-ins of a group: those that have a YAML file."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


class Part:
    """A plug-in's class, its options, and the names of all that its constructor takes."""

    def __init__(self, group: str, name: str):
        config = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
        if group == "verification":
            config = config["rule"]
        words = config["_target_"].split(".")
        last = next(place for place, word in enumerate(words) if word[:1].isupper())
        self.name = name
        # What a class method loads from a folder is given here.
        self.kind: Any = getattr(import_module(".".join(words[:last])), words[last])
        self.takes = inspect.signature(self.kind).parameters.keys()
        self._options = {
            key: value
            for key, value in config.items()
            if key in self.takes and not str(value).startswith("${")
        }

    def build(self, given: Mapping[str, Any]) -> Any:
        """Construct it from its options and those of the given things that it takes."""
        taken = {key: value for key, value in given.items() if key in self.takes}
        return self.kind(**self._options | taken)


def toy_model(noise: float = 0.0, num_layers: int = 1) -> HFCausalLM:
    """Make a verifier; with noise, a draft that often agrees with it."""
    model = tiny_model("gpt2", n_layer=num_layers).double()
    blank(model)
    shake(model, 0.5, seed=1)
    shake(model, noise, seed=2)
    return HFCausalLM(model)


def toy_heads(kind: type[DraftHeads], verifier: HFCausalLM, **options: Any) -> DraftHeads:
    """Make heads that say something else each, and often what the verifier says."""
    unembedding = verifier.model.get_output_embeddings()
    assert isinstance(unembedding, nn.Embedding | nn.Linear)
    vocab_size, size = unembedding.weight.shape
    made: Any = kind  # each kind has options of its own
    heads: DraftHeads = made(hidden_size=size, vocab_size=vocab_size, **options).double().eval()
    drawn = (heads.prefix, heads.correction) if isinstance(heads, Heads) else (heads,)
    for part in drawn:
        if part is not None:
            blank(part)
    heads.start_from(unembedding.weight)
    shake(heads, 0.1, seed=3)
    return heads


@torch.no_grad()
def blank(module: nn.Module) -> None:
    """Take what was drawn at random out of all weights; norms multiply by one."""
    for name, weight in module.named_parameters():
        weight.fill_(float(weight.dim() == 1 and not name.endswith("bias")))


@torch.no_grad()
def shake(module: nn.Module, amount: float, seed: int) -> None:
    """Add uniform noise to all weights."""
    numbers = np.random.default_rng(seed)
    for weight in module.parameters():
        weight.add_(torch.from_numpy(numbers.uniform(-amount, amount, tuple(weight.shape))))
