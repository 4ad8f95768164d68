"""Models of `gpu.py`: Llamas with random weights; and the bandwidth of memory."""

import statistics
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from specdec.runtime.preparation import now

_LLAMA: dict[str, Any] = {
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
}  # fmt: skip
_TINY: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How large models are, and how much is measured; `models` from small to large."""

    models: Mapping[str, Mapping[str, Any]]  # what `LlamaConfig` is given
    context: int  # cached tokens of a step that is timed
    repeats: int  # of a step, and of a copy
    batches: Sequence[int]
    texts: int
    new_tokens: int
    copied_bytes: int


SCALES = {
    "llama": Scale(
        {
            # Of Llama-3.2-1B and Llama-3.1-8B.
            "1B": {
                **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                "head_dim": 64, "tie_word_embeddings": True,
            },
            "8B": {
                **_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "head_dim": 128, "tie_word_embeddings": False,
            },
        },
        context=1024, repeats=40, batches=(1, 8, 32), texts=16, new_tokens=96,
        copied_bytes=2**31,
    ),
    # Large enough to be bound by memory on processors, too; 0.56 B parameters.
    "half": Scale(
        {
            "0.5B": {
                **_LLAMA, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28,
                "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
                "tie_word_embeddings": True,
            },
        },
        context=256, repeats=7, batches=(1, 4), texts=2, new_tokens=96, copied_bytes=2**28,
    ),
    "tiny": Scale(
        {
            "tied": {**_TINY, "num_hidden_layers": 1, "tie_word_embeddings": True},
            "untied": {**_TINY, "num_hidden_layers": 2, "tie_word_embeddings": False},
        },
        context=48, repeats=5, batches=(1, 2), texts=2, new_tokens=12, copied_bytes=2**22,
    ),
}  # fmt: skip


def random_llama(
    settings: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Build a model that nothing was trained into, and whose greedy text no rounding can change.

    The token is what it embeds, and layers add little to that: the next one is the same token, or
    the one after it where the vocabulary head has weights of its own.
    """
    torch.manual_seed(0)
    config = LlamaConfig(**settings, initializer_range=0.002)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    embedded, head = tables_of(model)
    with torch.no_grad():
        embedded.normal_()
        if head is not embedded:
            head.copy_(embedded.roll(1, 0))
    return model


def small_pair(device: torch.device) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Build a verifier in float32 whose text any fault would change, and a draft that is near."""
    torch.manual_seed(0)
    config = LlamaConfig(**_TINY, num_hidden_layers=2, initializer_range=0.3)
    with torch.device(device):
        verifier = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    draft: PreTrainedModel = deepcopy(verifier)
    with torch.no_grad():
        for each in draft.parameters():
            each.add_(torch.randn_like(each) * 0.01 * each.std(correction=0))
    return verifier, draft


def tables_of(model: PreTrainedModel) -> tuple[Tensor, Tensor]:  # [V, H] each
    """Return the embeddings and the weights of the vocabulary head, which may be the same."""
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return embeddings.weight, head.weight


def copy_bandwidth(device: torch.device, num_bytes: int, repeats: int) -> float:
    """Return bytes per second, read and written, of copying so many bytes."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds: list[float] = []
    for _ in range(repeats + 2):
        wait_for(device)
        start = now()
        target.copy_(source)
        wait_for(device)
        seconds.append(now() - start)
    return 2 * num_bytes / statistics.median(seconds[2:])


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
