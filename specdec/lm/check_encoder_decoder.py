"""The proof at load time, of an encoder-decoder model: what its caches hold is what it would read.

Two rows with sources and texts of unlike lengths read chains, are rewound, go on, and begin anew
with another source; each time the stock model reads the source and the whole text, without a cache.
Trees are tried beside that: a model whose positions cannot be told apart from places in a cache
reads chains alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.tree import CandidateTree
from specdec.lm.batch import TreeBatch, pad
from specdec.lm.encoder_decoder import EncoderDecoderLM
from specdec.lm.hf import head_shape
from specdec.lm.layer_kinds import why_no_trees
from specdec.runtime.agreement import TOLERANCE, relative_difference

SOURCES, TEXTS = (7, 4), (6, 2)  # tokens, in two rows
SHORTEST = 16  # context that the proof needs, on each side
SHAPE = CandidateTree((0, 1, 2, 3, 4, 5), (-1, 0, 0, 1, 2, 2))
KEPT = (0, 2, 5)  # the path that is accepted


def inputs_of(model: PreTrainedModel, texts: Tensor) -> dict[str, Tensor]:  # [B, T]
    """Return what the stock model is asked about texts: beside a source, if it has an encoder."""
    if not model.config.is_encoder_decoder:
        return {"input_ids": texts}
    source = _random(1, SOURCES[:1], model)[0]
    return {
        "input_ids": torch.tensor([source] * len(texts), device=texts.device),
        "decoder_input_ids": texts,
    }


def _random(seed: int, sizes: Sequence[int], model: PreTrainedModel) -> list[list[int]]:
    """Draw texts without padding, whose tokens some encoders do not count."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = head_shape(model)[0]
    padding = model.config.get_text_config().pad_token_id
    ordinary = torch.tensor([token for token in range(vocab_size) if token != padding])
    places = (torch.randint(len(ordinary), (size,), generator=generator) for size in sizes)
    return [ordinary[each].tolist() for each in places]


class _Rows:
    """Two rows with sources and the beginnings of texts."""

    def __init__(self, model: PreTrainedModel):
        self.lm = EncoderDecoderLM(model)
        if min(self.lm.max_source, self.lm.max_target) < SHORTEST:
            raise ValueError(f"contexts of less than {SHORTEST} tokens are too short for the proof")
        self.model = model
        self.sources = _random(2, SOURCES, model)
        self.texts = [[self.lm.start_id, *text] for text in _random(3, TEXTS, model)]
        self.lm.open(2, 16)
        self.lm.prefill([0, 1], self.sources)
        self.lm.prefill([0, 1], self.texts)

    @property
    def starts(self) -> list[int]:
        """The cells of both."""
        return [self.lm.length(row) for row in (0, 1)]

    def differs(self, logits: Tensor, row: int, more: Sequence[int]) -> float:
        """Compare with what the stock model says of the whole text, with more behind it."""
        text = [*self.texts[row], *more]
        device = logits.device
        given = {
            "input_ids": torch.tensor([self.sources[row]], device=device),
            "decoder_input_ids": torch.tensor([text], device=device),
        }
        plain = self.model(**given, use_cache=False).logits[0, -1]
        return relative_difference(logits, plain)


@torch.inference_mode()
def source_error(model: PreTrainedModel) -> float:
    """Return the largest relative difference, over chains."""
    rows = _Rows(model)
    lm, starts = rows.lm, rows.starts
    chains = _random(4, (4, 3), model)
    errors = list[float]()

    # 1) Chains of unlike lengths.
    logits = lm.forward([0, 1], pad(chains, lm.device)).logits
    for row, chain in enumerate(chains):
        for number in range(len(chain)):
            errors.append(rows.differs(logits[row, number], row, chain[: number + 1]))

    # 2) Accept two tokens of each, and go on from there.
    for row in (0, 1):
        lm.keep(row, starts[row], (0, 1))
    following = _random(5, (1, 1), model)
    after = lm.forward([0, 1], pad(following, lm.device)).logits
    for row in (0, 1):
        more = [*chains[row][:2], *following[row]]
        errors.append(rows.differs(after[row, 0], row, more))

    # 3) A row begins anew, with a source that is longer than the others.
    lm.keep(1, 0)
    (rows.sources[1],) = _random(6, (9,), model)
    lm.prefill([1], [rows.sources[1]])
    (rows.texts[1],) = ([lm.start_id],)
    last = lm.forward([1], pad([rows.texts[1]], lm.device)).logits
    errors.append(rows.differs(last[0, 0], 1, ()))
    return max(errors)


@torch.inference_mode()
def tree_error(model: PreTrainedModel) -> float:
    """Return the largest relative difference, over a tree in each row and what follows a path."""
    rows = _Rows(model)
    lm, starts = rows.lm, rows.starts
    nodes = _random(7, (6, 6), model)
    trees = [CandidateTree(tuple(ids), SHAPE.parents) for ids in nodes]
    logits = lm.forward([0, 1], *TreeBatch.of(trees, starts, lm.device)).logits
    for row in (0, 1):
        lm.keep(row, starts[row], KEPT)
    following = _random(8, (1, 1), model)
    after = lm.forward([0, 1], pad(following, lm.device)).logits
    errors = list[float]()
    for row in (0, 1):
        for node, marked in enumerate(SHAPE.ancestors()):
            path = [nodes[row][each] for each, seen in enumerate(marked) if seen]
            errors.append(rows.differs(logits[row, node], row, path))
        path = [nodes[row][node] for node in KEPT]
        errors.append(rows.differs(after[row, 0], row, [*path, *following[row]]))
    return max(errors)


def no_trees_of(model: PreTrainedModel) -> str | None:
    """Say why a model reads chains alone, if it does; one with an encoder is asked, too."""
    reason = why_no_trees(model.config)
    if reason is not None or not model.config.is_encoder_decoder:
        return reason
    try:
        error = tree_error(model)
    except Exception:  # whatever foreign code raises
        return "its decoder cannot place siblings at one position"
    if error <= TOLERANCE[model.dtype]:
        return None
    return f"a tree forward differs from plain forwards by {error:.1e} (relative)"


@torch.inference_mode()
def decoder_states_error(model: PreTrainedModel) -> float:
    """Compare logits with what follows from the last hidden states, as decoding reads them."""
    rows = _Rows(model)
    read: Any = rows.lm.forward(
        [0, 1], pad(_random(9, (5, 5), model), rows.lm.device), None, None, ("final",)
    )
    return relative_difference(rows.lm.unembed(read.hidden["final"]), read.logits)
