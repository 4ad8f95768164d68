"""What the timed forwards read: real text where the tokens matter, any tokens where they do not.

A dense model takes as long for any tokens. A mixture of experts reads the weights of the experts
that its tokens choose, and tokens of a text choose others than one token again and again. There a
chain is the text that goes on, which is what a draft that is right proposes, and a tree is the
likeliest next tokens, which is what a draft that knows the verifier puts beside each other.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from specdec.core.errors import UserError
from specdec.core.on_host import integers
from specdec.core.tree import CandidateTree
from specdec.lab.costs.forward_grid import ForwardGrid
from specdec.lm.batch import TreeBatch
from specdec.lm.hf import HFCausalLM
from specdec.lm.routing import Routing, distinct
from specdec.replaying.forwards import Shape

SEED = 20230228


@dataclass(frozen=True)
class Read:
    """What one row of the timed forwards reads behind one context."""

    before: Sequence[int]  # the cached tokens
    chain: Sequence[int]  # what follows, the root first
    beside: Sequence[int]  # children of the root

    def tree(self, shape: Shape) -> CandidateTree:
        """Return a chain, or as many children of the root."""
        number = shape.num_tokens - 1
        if shape.branches:
            return CandidateTree((self.chain[0], *self.beside[:number]), (-1, *(0,) * number))
        return CandidateTree.chain(self.chain[0], tuple(self.chain[1 : number + 1]))


Reads = Mapping[int, Sequence[Read]]  # by context, one for each row


def any_tokens(lm: HFCausalLM, grid: ForwardGrid) -> Reads:
    """Read one token again and again behind random text."""
    most = max(grid.tokens)
    found: dict[int, Sequence[Read]] = {}
    for context in grid.contexts:
        rng = random.Random(SEED)
        texts = [rng.choices(range(lm.vocab_size), k=context) for _ in range(grid.batch)]
        found[context] = [
            Read(text, (row,) * most, (row,) * (most - 1)) for row, text in enumerate(texts)
        ]
    return found


@torch.inference_mode()
def of_text(lm: HFCausalLM, grid: ForwardGrid, text: Sequence[int]) -> Reads:
    """Read the same tokens of a text behind more and more of it, and what is likely to follow.

    The text is repeated if it is too short. Rows read places that lie as far apart as it allows.
    """
    most, rows = max(grid.tokens), list(range(grid.batch))
    roots = [row * len(text) // grid.batch for row in rows]

    def piece(start: int, number: int) -> list[int]:
        return [text[(start + place) % len(text)] for place in range(number)]

    chains = [piece(root, most) for root in roots]
    found: dict[int, Sequence[Read]] = {}
    for context in grid.contexts:
        before = [piece(root - context, context) for root in roots]
        firsts = torch.tensor([[chain[0]] for chain in chains], device=lm.device)
        logits = filled(lm, before, context + 1).forward(rows, firsts).logits[:, 0]
        likeliest = logits.topk(min(most, lm.vocab_size)).indices
        beside = [integers(row) for row in likeliest]
        found[context] = [Read(*each) for each in zip(before, chains, beside, strict=True)]
    return found


def count_experts(lm: HFCausalLM, grid: ForwardGrid, reads: Reads) -> dict[Shape, float]:
    """Return the distinct experts of a sparse layer that each shape takes, on average over layers.

    All rows of the batch together, and eagerly, whatever runtime is timed. Empty where the model
    does not say which experts it chose.
    """
    rows = list(range(grid.batch))
    found: dict[Shape, float] = {}
    for context, some in reads.items():
        model = filled(lm, [each.before for each in some], context + max(grid.tokens))
        try:
            routing = Routing(model)
        except UserError:
            return {}
        for shape in [each for each in grid.shapes if each.context == context]:
            batch = TreeBatch.of([r.tree(shape) for r in some], [context] * len(rows), lm.device)
            experts = routing.forward(rows, *batch).experts
            assert experts is not None
            found[shape] = mean(distinct(experts.flatten(0, 1), routing.counts.num_experts))
            for row in rows:
                model.keep(row, context)
    return found


def filled(lm: HFCausalLM, texts: Sequence[Sequence[int]], capacity: int) -> HFCausalLM:
    """Return a model that runs eagerly, with a cache of its own that holds a text in each row."""
    model = HFCausalLM(lm.model, lm.tokenizer, max_length=lm.max_length)
    model.open(len(texts), capacity)
    model.prefill(range(len(texts)), texts)
    return model
