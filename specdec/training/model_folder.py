"""Where a trained language model goes: a folder that `verifier.path` and `draft.path` name."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_rounded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a Hugging Face folder: bf16 safetensors, config and tokenizer."""
    # A copy, because training may go on in fp32 after a save.
    rounded = copy.deepcopy(model)
    nn.Module.to(rounded, torch.bfloat16)  # typed, unlike the method of transformers
    tokenizer.save_pretrained(folder)
    rounded.save_pretrained(folder)
