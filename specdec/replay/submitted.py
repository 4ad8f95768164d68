"""Which candidates a step puts to the verifier, as far as the text tells.

Whether drafting goes on is decided after each candidate. On the text that is known; beside it the
draft's laws are not, and what depends on them is not told at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.tree.fixed import FixedTree


@dataclass(frozen=True)
class Submitted:
    """Of a step from each place of B texts; None where the text does not tell."""

    # Per depth d from 1: P(a candidate at depth d is submitted | the text, A >= d - 1), [B, T].
    tested: Sequence[Tensor | None]
    left_out: Tensor | None  # [B, T]: how many nodes of the tree are expected to be left out

    @classmethod
    def whole(cls, survival: Tensor) -> "Submitted":  # [B, T, D + 1]
        """Say that every step submits all of its tree."""
        every = torch.ones_like(survival[..., 0])
        return cls([every] * (survival.shape[2] - 1), torch.zeros_like(every))


@dataclass(frozen=True)
class Known:
    """What decides on the candidates of one arm; per depth from 1, along B texts."""

    sure: Sequence[Tensor]  # each [B, T] bool: whether drafting goes on to that depth on the text
    # Of filtered chains, each [B, T]: P(the drawn token passes | the text, A >= d - 1).
    passes: Sequence[Tensor | None] | None
    support: Tensor | None  # [B, T]: how many tokens the root's law has; None: enough
    is_full: bool  # whether all nodes, wherever they are, have as many children as the tree says
    ends: bool  # whether some tokens end a text, so that nothing is submitted below them


def submitted(tree: FixedTree, known: Known) -> Submitted:
    """Find what of a tree is submitted."""
    depths = range(1, tree.max_depth + 1)
    return Submitted([_tested(tree, known, depth) for depth in depths], _left_out(tree, known))


def _tested(tree: FixedTree, known: Known, depth: int) -> Tensor | None:
    sure = known.sure[depth - 1].double()
    if known.passes is not None:
        passes = known.passes[depth - 1]
        return None if passes is None else sure * passes
    above = [path for path in ((), *tree.nodes) if len(path) == depth - 1]
    if len(above) == 1:  # the node on the text, or none
        return sure
    if tree.min_confidence > 0:  # and what about its neighbours, which are not on the text?
        return None
    firsts = {path[:-1] for path in tree.nodes if len(path) == depth and path[-1] == 0}
    settled = known.is_full and not known.ends
    return sure if settled or firsts.issuperset(above) else None


def _left_out(tree: FixedTree, known: Known) -> Tensor | None:
    sure, num_nodes = known.sure[0].double(), tree.num_nodes
    if tree.max_depth > 1:
        settled = known.is_full and not known.ends and not tree.may_stop
        return torch.zeros_like(sure) if settled else None
    if known.passes is not None:
        passes = known.passes[0]
        return None if passes is None else num_nodes - sure * passes
    if known.support is None:
        return num_nodes * (1 - sure)
    numbers = torch.tensor([path[-1] for path in tree.nodes], device=sure.device)
    there = (numbers < known.support[..., None]).sum(dim=-1)
    return num_nodes - sure * there
