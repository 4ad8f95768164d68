"""Where a trained language model goes: a folder that `verifier.path` and `draft.path` name."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.core.jsonl import write_text


def save_rounded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    what: str,
    card: Mapping[str, str],
) -> None:
    """Write a Hugging Face folder: bf16 safetensors, config, tokenizer, and a card."""
    # A copy, because training may go on in fp32 after a save.
    rounded = copy.deepcopy(model)
    nn.Module.to(rounded, torch.bfloat16)  # typed, unlike the method of transformers
    tokenizer.save_pretrained(folder)
    rounded.save_pretrained(folder)
    rows = "".join(f"| {name} | {value} |\n" for name, value in card.items())
    head = "---\nlibrary_name: transformers\ntags: [speculative-decoding]\n---\n\n"
    write_text(folder / "README.md", f"{head}# {what}\n\n| training | |\n|---|---|\n{rows}")
