"""Bytes that a forward must move, however well it is written: what its seconds are held against."""

import re

from torch import nn
from transformers import PreTrainedModel

from specdec.lm.expert_counts import ExpertCounts
from specdec.lm.hf import HFCausalLM
from specdec.lm.quantization import num_bytes
from specdec.runtime.program import SLIDING

ROUTED = re.compile(r"(^|\.)experts\.")  # not the shared ones, which every token takes


def step_bytes(
    lm: HFCausalLM, batch: int, num_new: int, context: int, experts: float | None = None
) -> int:
    """Return the bytes of a forward of `num_new` cells in each of `batch` rows behind `context`.

    Weights are read once; keys and values of a row are read as far as its last cell sees, or
    written if they are new. Activations may stay in caches, and are not counted.

    Args:
        lm: a model that has read something, so that the sizes of its cells are known.
        batch: rows, B.
        num_new: cells, M.
        context: cached cells of each row.
        experts: see `weight_bytes`.
    """
    config = lm.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or [None] * len(lm.cell_bytes)
    cells = 0
    for kind, size in zip(kinds, lm.cell_bytes, strict=True):
        windowed = lm.window is not None and kind in (SLIDING, None)
        # The new cells see windows of their own, which end one after another.
        seen = min(context, lm.window - 1) if windowed and lm.window else context
        cells += (seen + num_new) * size
    return weight_bytes(lm.model, batch * num_new, experts) + batch * cells


def weight_bytes(model: PreTrainedModel, num_tokens: int, experts: float | None = None) -> int:
    """Return the bytes of the weights that so many tokens need.

    Of embeddings these are the rows that are looked up, unless the vocabulary head is the same
    matrix; of a mixture of experts, those experts that any of the tokens takes.

    Args:
        model: of transformers.
        num_tokens: that are read at once, n.
        experts: distinct ones of a sparse layer, on average, where they were counted; None: as
            many as independent and equally likely choices touch, see `ExpertCounts.expected`.
    """
    counts = ExpertCounts.of(model.config)
    touched = counts.expected(num_tokens) if counts and experts is None else experts
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    tables = {id(each.weight) for each in decoder.modules() if isinstance(each, nn.Embedding)}
    named = {id(each): (name, each) for name, each in decoder.named_parameters()}
    if head is not None:
        named |= {id(each): ("", each) for each in head.parameters()}
        tables -= {id(each) for each in head.parameters()}
    total = 0
    for key, (name, each) in named.items():
        size = num_bytes(each)
        if key in tables:
            size = size * min(num_tokens, len(each)) // len(each)
        elif counts and touched is not None and ROUTED.search(name):
            size = round(size * min(1.0, touched / counts.num_experts))
        total += size
    return total
