"""A copy of a verifier that is trained, whole or by LoRA, beside the original."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from specdec.core.errors import UserError, require
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm


class Method(Protocol):
    """How a copy is trained."""

    model: PreTrainedModel  # the copy; what of it is trained requires gradients, in fp32

    def merged(self) -> PreTrainedModel:
        """Return a stock model of its own with what was learnt in its weights."""
        ...


class Full:
    """Train every weight of a copy."""

    def __init__(self, original: PreTrainedModel):
        self.model = copy.deepcopy(original)
        nn.Module.to(self.model, torch.float32)  # steps are too small for half precision
        self.model.requires_grad_(True)

    def merged(self) -> PreTrainedModel:
        """Return a copy."""
        return copy.deepcopy(self.model)


class LoRA:
    """Train low-rank additions to linear layers (Hu et al. 2021); the weights stay the original's.

    Raises:
        UserError: peft is not installed, or the decoder has no layers of these names.
    """

    def __init__(
        self,
        original: PreTrainedModel,
        rank: int,
        alpha: int,
        targets: Sequence[str] | None,
        seed: int,
    ):
        try:
            from peft import LoraConfig, LoraModel
        except ImportError:
            raise UserError(
                "method='lora': needs the package peft; pip install 'specdec-lab[joint]'"
            ) from None
        # Modules of its own, since adapters are put into them, on the original's very weights.
        weights = {id(weight): weight for weight in original.parameters()}
        self.model: PreTrainedModel = copy.deepcopy(original, weights)
        settings = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=linear_layers(self.model, targets)
        )
        settings.fan_in_fan_out = any(isinstance(part, Conv1D) for part in self.model.modules())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._adapted = LoraModel(self.model, settings, "default")
        for weight in self.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()

    def merged(self) -> PreTrainedModel:
        """Return a copy that has no adapters any more."""
        merged = copy.deepcopy(self._adapted).merge_and_unload()
        assert isinstance(merged, PreTrainedModel)
        return merged


def linear_layers(model: PreTrainedModel, targets: Sequence[str] | None) -> list[str]:
    """Return the full names of the decoder's linear layers, of all or of those called `targets`.

    The vocabulary head is none of them: it often is the embedding, too.

    Raises:
        UserError: there is no layer of some name.
    """
    linear = {module for module in model.base_model.modules() if isinstance(module, _LINEAR)}
    names = [name for name, module in model.named_modules() if module in linear]
    known = {name.rsplit(".", maxsplit=1)[-1] for name in names}
    wanted = known if targets is None else set(targets)
    expected = "names of linear layers, of " + ", ".join(sorted(known))
    require(bool(wanted) and wanted <= known, "lora_targets", targets, expected)
    return [name for name in names if name.rsplit(".", maxsplit=1)[-1] in wanted]


_LINEAR = (nn.Linear, Conv1D)


class Tuned:
    """The verifier that is trained beside its original, and how it is saved.

    The original is never changed: it is what `specdec.lm.load` gives to everyone who asks. With
    LoRA both hold the same weights in memory.
    """

    def __init__(self, original: HFCausalLM, method: Method):
        assert original.tokenizer is not None
        self._original = original
        self._method = method
        self._device = original.device
        self._tokenizer = original.tokenizer
        self.lm = causal_lm(method.model, original.tokenizer, max_length=original.max_length)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights that are trained, by name; tied ones once."""
        named = self._method.model.named_parameters()
        return {name: weight for name, weight in named if weight.requires_grad}

    def place(self, device: torch.device) -> None:
        """Move both models; together, because they may share weights but not buffers."""
        if device != self._device:
            for model in (self._original.model, self.lm.model):
                nn.Module.to(model, device)
            self._device = device

    def hidden(self, token_ids: Tensor) -> Tensor:  # [B, T] -> [B, T, H] float32
        """Return the last hidden states, with a graph."""
        base = self.lm.model.base_model
        return base(input_ids=token_ids, use_cache=False).last_hidden_state.float()

    def save(self, folder: Path) -> dict[str, str]:
        """Write a Hugging Face folder in the original's dtype; returns its fingerprint."""
        merged = self._method.merged()
        dtype = self._original.model.dtype
        nn.Module.to(merged, dtype)
        merged.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)
        # Of what lies there now, not of what was meant to: that is what heads will meet.
        # Code that lies there came with the original, which was trusted.
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)
        saved = type(merged).from_pretrained(str(folder), dtype=dtype)
        return fingerprint(causal_lm(saved, tokenizer))


def tuned(
    original: HFCausalLM,
    method: str,
    lora_rank: int,
    lora_alpha: int,
    lora_targets: Sequence[str] | None,
    seed: int,
) -> Tuned:
    """Copy a verifier so that it can be trained.

    Raises:
        UserError: LoRA cannot be used (see `LoRA`).
    """
    if method == "full":
        return Tuned(original, Full(original.model))
    return Tuned(original, LoRA(original.model, lora_rank, lora_alpha, lora_targets, seed))
