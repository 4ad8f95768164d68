"""A conversation with a model in rows of unlike lengths, each word of it checked against the truth.

The truth is the stock model reading each path as ordinary text: one row, no cache, no mask.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.protocols import Forward
from specdec.core.tree import CandidateTree
from specdec.core.values import Layer
from specdec.lm.batch import TreeBatch
from specdec.lm.recurrent import causal_lm
from tests.support.families import plain_logits, random_ids

EXACT = 1e-5  # relative 2-norm in fp32; a wrong mask, position or cell gives 1e-2 and more
# Shapes of trees, and the path of each that is accepted.
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((-1, 0, 0, 1, 2, 2, 5, 5), (0, 2, 5, 7)),  # uneven, 3 deep; the path skips cells
    ((-1, 0, 1, 2), (0, 1)),  # a chain of which one token is accepted
    ((-1, 0, 0, 0, 3), (0, 3, 4)),
    ((-1,), (0,)),  # nothing was drafted
    ((-1, 0, 0, 1, 1), (0,)),  # nothing was accepted
]


def difference(ours: Tensor, truth: Tensor) -> float:
    """Relative 2-norm; anything that is not a number is infinitely wrong."""
    value = float((ours - truth).norm() / truth.norm())
    return value if value == value else float("inf")


class Conversation:
    """Rows of text in a model's cache, and beside them the same texts as plain lists."""

    def __init__(
        self, model: PreTrainedModel, lengths: Sequence[int], capacity: int, seed: int = 0
    ):
        self.lm = causal_lm(model)
        self.model = model
        self.texts = [random_ids(num, seed + row) for row, num in enumerate(lengths)]
        self.worst = 0.0
        self._seed = 1000 * (seed + 1)
        self.lm.open(len(lengths), capacity)

    def prefill(self, layers: Sequence[Layer] = ()) -> list[dict[Layer, Tensor]]:
        """Read every text."""
        return self.lm.prefill(range(len(self.texts)), self.texts, layers)

    def step(
        self, rows: Sequence[int], shapes: Sequence[int], layers: Sequence[Layer] = ()
    ) -> tuple[Forward, list[CandidateTree]]:
        """Forward one tree per row, compare every node's logits, accept one path in each."""
        trees = [self.random_tree(shape) for shape in shapes]
        starts = [self.lm.length(row) for row in rows]
        forward = self.lm.forward(rows, *TreeBatch.of(trees, starts, self.lm.device), layers)
        for index, (row, tree) in enumerate(zip(rows, trees, strict=True)):
            self._compare(forward.logits[index], self.texts[row], tree)
            path = SHAPES[shapes[index]][1]
            self.lm.keep(row, starts[index], path)
            self.texts[row] += [tree.token_ids[node] for node in path]
        return forward, trees

    def random_tree(self, shape: int) -> CandidateTree:
        """Fill one of SHAPES with random tokens."""
        self._seed += 1
        parents = SHAPES[shape][0]
        return CandidateTree(tuple(random_ids(len(parents), self._seed)), parents)

    def _compare(self, logits: Tensor, text: Sequence[int], tree: CandidateTree) -> None:
        for leaf in [node for node, children in enumerate(tree.children) if not children]:
            path = path_to(tree, leaf)
            truth = plain_logits(self.model, [*text, *(tree.token_ids[node] for node in path)])
            for depth, node in enumerate(path):
                self.worst = max(self.worst, difference(logits[node], truth[len(text) + depth]))

    def check_texts(self) -> None:
        """Append one token to all rows at once, and compare: the caches hold what they should."""
        token_ids = torch.tensor([random_ids(len(self.texts), seed=99)]).T
        logits = self.lm.forward(range(len(self.texts)), token_ids).logits
        for row, text in enumerate(self.texts):
            text.append(int(token_ids[row]))
            self.worst = max(
                self.worst, difference(logits[row, 0], plain_logits(self.model, text)[-1])
            )


def path_to(tree: CandidateTree, node: int) -> list[int]:
    """List the nodes from the root to this one."""
    return [number for number, marked in enumerate(tree.ancestors()[node]) if marked]
