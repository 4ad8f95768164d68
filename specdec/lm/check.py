"""The proof at load time: on this very model, a tree forward equals plain forwards.

A model whose code ignores the mask, the positions or the cache would decode without a word of
warning, and wrongly. So a ragged batch of two rows with a branching tree is run through our cache,
rewound, continued, and compared with the stock model reading each path as ordinary text.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.errors import UserError, first_line
from specdec.core.tree import CandidateTree
from specdec.lm import mask
from specdec.lm.batch import TreeBatch, pad
from specdec.lm.check_encoder_decoder import inputs_of, source_error
from specdec.lm.context import steady_length
from specdec.lm.hf import head_shape
from specdec.lm.placement import device_of, is_rounded, is_whole
from specdec.lm.recurrent import causal_lm
from specdec.lm.source_room import room_of
from specdec.runtime.agreement import TOLERANCE, relative_difference

SHAPE = CandidateTree((0, 1, 2, 3, 4, 5), (-1, 0, 0, 1, 2, 2))
KEPT = (0, 2, 5)  # the path that is accepted
CHAIN = CandidateTree.chain(0, (1, 2, 3, 4, 5))  # for models that read no trees
KEPT_OF_CHAIN = (0, 1, 2)
MOST_SPREADS = 4  # by which a tree forward may differ more than the stock model from itself
SHORTEST = 10  # context that the proof needs
LONGEST_WINDOW = 1024  # beyond this the proof would cost more than it tells


@torch.inference_mode()
def prove(model: PreTrainedModel, name: str) -> float:
    """Compare tree forwards with plain forwards and return the largest relative difference.

    Raises:
        UserError: they differ by more than the type's rounding, or the model cannot be called.
    """
    tolerance = TOLERANCE[model.dtype]
    try:
        _require_one_width(model)
        error = largest_error(model)
        by_rounding = error <= tolerance or _rounding_alone(model, error)
    except Exception as problem:  # whatever foreign code raises, it cannot be used
        reason = first_line(problem)
        raise UserError(
            f"{name}: {model.config.model_type} cannot decode candidates with our cache ({reason})"
        ) from problem
    if not math.isfinite(error):
        raise UserError(
            f"{name}: {model.config.model_type} returns logits that are not numbers (NaN); its"
            " weights are damaged, or a wider dtype may help, dtype=bfloat16 or float32"
        )
    if not by_rounding:
        differs = f"a forward of candidates differs from plain forwards by {error:.1e}"
        allowed = f"(relative; {model.dtype} allows {tolerance:.0e})"
        raise UserError(f"{name}: {model.config.model_type} is not supported: {differs} {allowed}")
    return error


def _rounding_alone(model: PreTrainedModel, error: float) -> bool:
    """Whether the stock model differs about as much from itself, and not at all in float32.

    Near a tie rounding sends a token to another expert, whenever a text is read in another batch.
    In float32 such ties are ten thousand times rarer, and a wrong mask, position or cell is as
    wrong as before. Costs a copy of the weights, where it is needed and there is room for it: not
    where they had to be spread over devices or processes. Of weights that transformers rounded
    there is none; in float32, too, their products may depend on what else is read.
    """
    if not math.isfinite(error) or (model.dtype is torch.float32 and not is_rounded(model)):
        return False
    if error > MOST_SPREADS * own_spread(model):
        return False
    if not is_whole(model):
        return True
    try:
        exact: Any = copy.deepcopy(model)
        return largest_error(exact.to(torch.float32)) <= TOLERANCE[torch.float32]
    except torch.OutOfMemoryError:
        return True


@torch.inference_mode()
def own_spread(model: PreTrainedModel) -> float:
    """Return how much the stock model differs from itself on ordinary texts, read otherwise.

    With more text behind, which it does not look at, and beside copies of the same. Weights that
    transformers rounded may be multiplied in a coarser type than the model's (activations of 8
    bits, bfloat16): then inputs that differ by a rounding of the model's type count as well.
    """
    generator = torch.Generator().manual_seed(0)
    vocab_size, most = head_shape(model)[0], _longest(model)
    largest = 0.0
    for length in (5, 8, 9, 10, 11, 12):
        text = torch.randint(vocab_size, (length,), generator=generator).tolist()
        alone = _plain(model, text)
        if is_rounded(model):
            largest = max(largest, relative_difference(_shaken(model, text, generator), alone))
        for more in (1, 2, 5, 11, 30):
            behind = torch.randint(vocab_size, (more,), generator=generator).tolist()
            if length + more <= most:
                read = torch.tensor([text + behind] * more, device=device_of(model))
                found = model(**inputs_of(model, read), use_cache=False).logits[:, length - 1]
                largest = max(largest, *(relative_difference(each, alone) for each in found))
    return largest


def _shaken(model: PreTrainedModel, text: list[int], generator: torch.Generator) -> Tensor:  # [V]
    """What the stock model says where all that it embeds is off by about one rounding."""
    read = model.get_input_embeddings()(torch.tensor([text], device=device_of(model)))
    noise = torch.randn(read.shape, generator=generator).to(read.device, torch.float32)
    off = (read.float() * (1 + torch.finfo(read.dtype).eps * noise)).to(read.dtype)
    return model(inputs_embeds=off, use_cache=False).logits[0, -1]


def _longest(model: PreTrainedModel) -> int:
    config = model.config
    if config.is_encoder_decoder:
        return room_of(config).tokens
    return steady_length(config.get_text_config())


def _require_one_width(model: PreTrainedModel) -> None:
    """Refuse logits of tokens that the model cannot read, or that its vocabulary head lacks."""
    width, num_logits = head_shape(model)[0], len(_plain(model, [0]))
    embedded = getattr(model.get_input_embeddings(), "weight", None)
    num_read = num_logits if embedded is None else len(embedded)
    if num_logits != width:
        raise ValueError(f"it returns {num_logits} logits, its vocabulary head has {width} rows")
    if num_read < num_logits:
        raise ValueError(f"it returns {num_logits} logits, it embeds {num_read} tokens")


def largest_error(model: PreTrainedModel) -> float:
    """Run the comparison on two rows of unlike length, the longer one past any short window."""
    if model.config.is_encoder_decoder:
        return source_error(model)
    lm = causal_lm(model)
    if lm.max_length < SHORTEST:
        raise ValueError(f"its context of {lm.max_length} tokens is too short for the proof")
    window = mask.MaskKind.of(model.config.get_text_config()).window or 0
    long = 9 + (window if window <= LONGEST_WINDOW else 0)
    generator = torch.Generator().manual_seed(0)
    sizes = [min(long, lm.max_length - 8), 5]
    texts = [torch.randint(lm.vocab_size, (n,), generator=generator).tolist() for n in sizes]
    shape, kept = (SHAPE, KEPT) if lm.no_trees is None else (CHAIN, KEPT_OF_CHAIN)
    nodes = torch.randint(lm.vocab_size, (2, len(shape.token_ids)), generator=generator).tolist()

    # 1) Prefill two rows, then forward one tree on each.
    lm.open(num_rows=2, capacity=max(sizes) + 8)
    lm.prefill([0, 1], texts)
    starts = [lm.length(row) for row in (0, 1)]
    trees = [CandidateTree(tuple(ids), shape.parents) for ids in nodes]
    logits = lm.forward([0, 1], *TreeBatch.of(trees, starts, lm.device)).logits

    # 2) Accept one path in each row and go on from there, one token after another.
    for row in (0, 1):
        lm.keep(row, starts[row], kept)
    following = [[7 % lm.vocab_size, 1], [8 % lm.vocab_size, 2]]
    after = [lm.forward([0, 1], pad([[ids[n]] for ids in following], lm.device)) for n in (0, 1)]

    errors = []
    for row, text in enumerate(texts):
        for node in range(len(shape.token_ids)):
            path = text + [nodes[row][n] for n in _path(shape, node)]
            errors.append(relative_difference(logits[row, node], _plain(model, path)))
        for number, found in enumerate(after):
            path = text + [nodes[row][n] for n in kept] + following[row][: number + 1]
            errors.append(relative_difference(found.logits[row, 0], _plain(model, path)))
    return max(errors)


def _path(shape: CandidateTree, node: int) -> list[int]:
    """Nodes from the root to `node`."""
    return [number for number, marked in enumerate(shape.ancestors()[node]) if marked]


def _plain(model: PreTrainedModel, token_ids: list[int]) -> Tensor:  # [V]
    """What the stock model says after ordinary text, without any cache."""
    batch = torch.tensor([token_ids], device=device_of(model))
    return model(**inputs_of(model, batch), use_cache=False).logits[0, -1]
