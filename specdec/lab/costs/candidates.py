"""What the timed forwards read: real text where the tokens matter, any tokens where they do not.

A dense model takes as long for any tokens. A mixture of experts reads the weights of the experts
that its tokens choose, and tokens of a text choose others than one token again and again. There a
chain is the text that goes on, which is what a draft that is right proposes, and a tree is the text
with the likeliest other tokens beside it, which is what a draft that knows the verifier proposes.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.on_host import integers
from specdec.core.tree import CandidateTree
from specdec.lab.costs.forward_grid import ForwardGrid
from specdec.lm.batch import TreeBatch
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.lm.routing import Routing, distinct
from specdec.replaying.forwards import Shape

SEED = 20230228


@dataclass(frozen=True)
class Read:
    """What one row of the timed forwards reads behind one context; smaller trees begin larger ones.

    Args:
        before: the cached tokens.
        chain: what follows, the root first.
        nodes: of a tree below the root, each with its parent.
    """

    before: Sequence[int]
    chain: Sequence[int]
    nodes: Sequence[tuple[int, int]]  # parent, token

    def tree(self, shape: Shape) -> CandidateTree:
        """Return the first tokens of the chain, or the first nodes of the tree."""
        number = shape.num_tokens - 1
        if not shape.branches:
            return CandidateTree.chain(self.chain[0], tuple(self.chain[1 : number + 1]))
        parents, token_ids = zip(*self.nodes[:number], strict=True)
        return CandidateTree((self.chain[0], *token_ids), (-1, *parents))


Reads = Mapping[int, Sequence[Read]]  # by context, one for each row


def any_tokens(lm: HFCausalLM, grid: ForwardGrid) -> Reads:
    """Read one token again and again behind random text."""
    most = max(grid.tokens)
    found: dict[int, Sequence[Read]] = {}
    for context in grid.contexts:
        rng = random.Random(SEED)
        texts = [rng.choices(range(lm.vocab_size), k=context) for _ in range(grid.batch)]
        found[context] = [
            Read(text, (row,) * most, [(0, row)] * (most - 1)) for row, text in enumerate(texts)
        ]
    return found


@torch.inference_mode()
def of_text(lm: HFCausalLM, grid: ForwardGrid, text: Sequence[int]) -> Reads:
    """Read the same tokens of a text behind more and more of it, and what is likely beside them.

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
        read = torch.tensor(chains, device=lm.device)
        logits = filled(lm, before, context + most).forward(rows, read).logits
        likeliest = logits.topk(min(most, lm.vocab_size)).indices.cpu()  # [B, M, K]
        trees = [along(*each) for each in zip(chains, likeliest, strict=True)]
        found[context] = [Read(*each) for each in zip(before, chains, trees, strict=True)]
    return found


def along(chain: Sequence[int], likeliest: Tensor) -> list[tuple[int, int]]:  # [M], [M, K]
    """Return the nodes of a tree along a text: its tokens, and beside each the likeliest others.

    Deep nodes count as unlikely as low ranks do: the text's own token at depth d is followed by
    those of rank r at depth d - r, as trees that grow by probability are deep and narrow.
    """
    ranks = range(likeliest.shape[1])
    places = sorted((depth + rank, depth, rank) for depth in range(1, len(chain)) for rank in ranks)
    order = {place: number for number, place in enumerate(places[: len(chain) - 1], start=1)}
    nodes: list[tuple[int, int]] = []
    for _, depth, rank in order:
        own = chain[depth]
        others = [token for token in integers(likeliest[depth - 1]) if token != own]
        parent = order[depth - 1, depth - 1, 0] if depth > 1 else 0
        nodes.append((parent, own if rank == 0 else others[rank - 1]))
    return nodes


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
    model = causal_lm(lm.model, lm.tokenizer, max_length=lm.max_length)
    model.open(len(texts), capacity)
    model.prefill(range(len(texts)), texts)
    return model
