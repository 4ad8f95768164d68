"""Floating-point operations that a forward needs, however well it is written; see `traffic`."""

from torch import nn
from transformers import PreTrainedModel

from specdec.lm.expert_counts import ExpertCounts
from specdec.lm.hf import HFCausalLM
from specdec.lm.traffic import ROUTED


def forward_operations(lm: HFCausalLM, num_new: int, context: int, num_logits: int) -> int:
    """Return the operations of a forward of `num_new` cells of one row behind `context`.

    Two for each weight that a token is multiplied with, and four for each pair of tokens of which
    one sees the other, of each number of a head: a query with a key, a probability with a value.
    Norms, rotations and activations are not counted; windows are not made use of. Where latents are
    cached in place of keys and values, what it takes to read them is not counted either.

    Args:
        lm: a model that has read something, so that the sizes of its cells are known.
        num_new: cells, M.
        context: cached cells before them.
        num_logits: cells whose logits are asked for.
    """
    layers, head = multiplied_weights(lm.model)
    pairs = num_new * context + num_new * (num_new + 1) // 2
    return 2 * (layers * num_new + head * num_logits) + 2 * _pair_width(lm) * pairs


def _pair_width(lm: HFCausalLM) -> int:
    """Return the numbers of keys and values that a query meets in one cell, over heads and layers.

    Heads of queries share keys; each has its own products with them.
    """
    queries: int = lm.model.config.get_text_config().num_attention_heads
    size = lm.model.dtype.itemsize
    pairs = zip(lm.cell_bytes, lm.key_heads, strict=True)
    return sum(queries * (cell // size // heads) for cell, heads in pairs)


def multiplied_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Return the weights that a token is multiplied with in the layers, and in the vocabulary head.

    Embeddings are looked up; of a mixture of experts those count that one token takes.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    tables = {id(each.weight) for each in decoder.modules() if isinstance(each, nn.Embedding)}
    counts, layers = ExpertCounts.of(model.config), 0
    for name, each in decoder.named_parameters():
        if id(each) in tables or each.dim() < 2:
            continue
        is_routed = counts is not None and ROUTED.search(name)
        share = min(counts.per_token, len(each)) / len(each) if counts and is_routed else 1
        layers += int(each.numel() * share)
    return layers, 0 if head is None else sum(each.numel() for each in head.parameters())
