"""The proof at load time that a model reads prompts in both directions as it is told to.

As in `check.py`, two ragged rows go through our cache, prompts first and a tree behind them. The
stock model, given whole texts and a mask of what each token sees, must say the same.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from specdec.core.errors import UserError, first_line
from specdec.core.tree import CandidateTree
from specdec.lm import mask
from specdec.lm.batch import TreeBatch
from specdec.lm.check import MOST_SPREADS, SHAPE, own_spread
from specdec.lm.layer_kinds import is_recurrent
from specdec.lm.mask import PREFIX_LM
from specdec.lm.placement import device_of
from specdec.lm.prefix_lm import PrefixLM
from specdec.runtime.agreement import TOLERANCE, relative_difference

SIZES = (6, 3)  # tokens of the prompts


def require_two_ways(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model that cannot read in both directions; `name` begins complaints.

    Raises:
        UserError: it has an encoder, recurrent layers or sliding windows.
    """
    what = f"{name}: attention={PREFIX_LM!r}: {config.model_type} has"
    if config.is_encoder_decoder:
        raise UserError(f"{what} an encoder, which reads in both directions already; expected null")
    if is_recurrent(config):
        raise UserError(f"{what} recurrent layers, which read from left to right alone")
    window = mask.MaskKind.of(config.get_text_config()).window
    if window is not None:
        raise UserError(
            f"{what} layers that see {window} tokens back, and how far a prompt sees ahead there is"
            " not defined"
        )


@lru_cache(maxsize=4)  # as many as weights are kept
@torch.inference_mode()
def prefix_error(model: PreTrainedModel, name: str) -> float:
    """Prove a model, and return the largest relative difference; `name` begins complaints.

    Raises:
        UserError: it is more than rounding, or the model lets no token see those behind it.
    """
    kind = f"{name}: attention={PREFIX_LM!r}: {model.config.model_type}"
    try:
        looks_ahead, error = _looks_ahead(model), largest_prefix_error(model)
    except Exception as problem:  # whatever foreign code raises, it cannot be used
        raise UserError(f"{kind} cannot read a prompt whole ({first_line(problem)})") from problem
    if not looks_ahead:
        raise UserError(f"{kind} lets no token see those behind it, whatever its mask says")
    allowed = TOLERANCE[model.dtype]
    if model.dtype is not torch.float32:  # see `check.prove`: experts, near ties
        allowed = max(allowed, MOST_SPREADS * own_spread(model))
    if not (math.isfinite(error) and error <= allowed):
        raise UserError(
            f"{kind} is not supported: it differs from the same model with a mask by {error:.1e}"
            f" (relative; {model.dtype} allows {allowed:.0e})"
        )
    return error


def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether what is said after a prompt's first token depends on its second one."""
    said = [_stock(model, [0, token], 2)[0] for token in (1, 2)]
    return not torch.equal(*said)


def largest_prefix_error(model: PreTrainedModel) -> float:
    """Compare trees behind two prompts of unlike lengths with whole texts."""
    lm = PrefixLM(model)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(lm.vocab_size, (n,), generator=generator).tolist() for n in SIZES]
    drafted = torch.randint(lm.vocab_size, (2, len(SHAPE.token_ids) - 1), generator=generator)
    lm.open(num_rows=2, capacity=max(SIZES) + len(SHAPE.token_ids))
    lm.begin([0, 1], texts)
    nodes = [[text[-1], *ids] for text, ids in zip(texts, drafted.tolist(), strict=True)]
    trees = [CandidateTree(tuple(ids), SHAPE.parents) for ids in nodes]
    starts = [lm.length(row) for row in (0, 1)]
    logits = lm.forward([0, 1], *TreeBatch.of(trees, starts, lm.device)).logits
    errors: list[float] = []
    for row, text in enumerate(texts):
        for node, ancestors in enumerate(SHAPE.ancestors()):
            path = [nodes[row][place] for place, marked in enumerate(ancestors) if marked]
            whole = _stock(model, [*text[:-1], *path], len(text))[-1]
            errors.append(relative_difference(logits[row, node], whole))
    return max(errors)


def _stock(model: PreTrainedModel, token_ids: list[int], num_prompt: int) -> Tensor:  # [T, V]
    """What the stock model says along a text, of which the beginning is a prompt."""
    batch = torch.tensor([token_ids], device=device_of(model))
    lengths = torch.tensor([num_prompt], device=device_of(model))
    sight = mask.sight_of(lengths, len(token_ids), model.dtype)
    return model(input_ids=batch, use_cache=False, **sight).logits[0]
