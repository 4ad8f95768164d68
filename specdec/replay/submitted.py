"""Which candidates a step puts to the verifier, as far as the text tells.

Whether drafting goes on is decided after each candidate, and nothing is submitted below one that
ends the text. On the text that is known; of candidates beside it only what was drawn right behind
the text is. What depends on more is not told at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.values import Draw
from specdec.tree.fixed import FixedTree, Path


@dataclass(frozen=True)
class Submitted:
    """Of a step from each place of B texts; None where the text does not tell."""

    # Per depth d from 1: P(a candidate at depth d is submitted | the text, A >= d - 1), [B, T].
    tested: Sequence[Tensor | None]
    # Both of trees that are cut to each depth, from 0 to D, [B, T, D + 1].
    left_out: Tensor | None  # how many nodes are expected to be left out
    branched: Tensor | None  # P(the others are no chain)

    @classmethod
    def unknown(cls, depth: int) -> "Submitted":
        """Tell nothing, where nothing is asked."""
        return cls([None] * depth, None, None)


@dataclass(frozen=True)
class Known:
    """What decides on the candidates of one arm; per depth from 1, along B texts."""

    sure: Sequence[Tensor]  # each [B, T] bool: whether drafting goes on to that depth on the text
    # Of filtered chains, each [B, T]: P(the drawn token passes | the text, A >= d - 1).
    passes: Sequence[Tensor | None] | None
    support: Tensor | None  # [B, T]: how many tokens the root's law has; None: enough
    is_full: bool  # whether all nodes, wherever they are, have as many children as the tree says
    ends: bool  # whether some tokens end a text, so that nothing is submitted below them
    # Each [B, T, K]: P(the k-th child there ends the text | the text); None: not told.
    ended: Sequence[Tensor | None]
    reads_path: bool  # whether a law depends on the candidates before


def submitted(tree: FixedTree, known: Known) -> Submitted:
    """Find what of a tree is submitted."""
    present = _present(tree, known, tree.max_depth)
    tested = [_tested(tree, known, depth) for depth in range(1, tree.max_depth + 1)]
    return Submitted(tested, _left_out(tree, present), _branched(tree, known, present))


def _present(tree: FixedTree, known: Known, deepest: int) -> dict[Path, Tensor] | None:  # of [B, T]
    """Return P(a node is submitted | the text), if that is known of all nodes down to a depth."""
    if known.passes is not None or (known.support is not None and not known.is_full):
        return _present_at_once(tree, known) if tree.max_depth == 1 else None
    if deepest > 1 and tree.min_confidence > 0 and known.reads_path:
        return None
    # What is drawn beside the text is known of candidates right behind the text alone.
    certain = tree.draw is Draw.DETERMINISTIC and not known.reads_path
    if known.ends and deepest > 2 and not certain:
        return None
    found: dict[Path, Tensor] = {(): torch.ones_like(known.sure[0], dtype=torch.float64)}
    for path in (path for path in tree.nodes if len(path) <= deepest):
        above = found[path[:-1]] * known.sure[len(path) - 1]
        if known.ends and len(path) > 1:
            ended = known.ended[len(path) - 2]
            if ended is None:
                return None
            above = above * (1 - ended[..., path[-2]])
        found[path] = above
    return found


def _present_at_once(tree: FixedTree, known: Known) -> dict[Path, Tensor] | None:
    """Return the same of trees of one level, which a filter decides on, or how wide q is."""
    sure = known.sure[0].double()
    if known.passes is not None:
        passes = known.passes[0]
        return None if passes is None else {(0,): sure * passes}
    assert known.support is not None
    return {path: sure * (path[-1] < known.support) for path in tree.nodes}


def _tested(tree: FixedTree, known: Known, depth: int) -> Tensor | None:  # [B, T]
    sure = known.sure[depth - 1].double()
    if known.passes is not None:
        passes = known.passes[depth - 1]
        return None if passes is None else sure * passes
    above = [path for path in ((), *tree.nodes) if len(path) == depth - 1]
    if len(above) == 1:  # the node on the text, or none
        return sure
    if tree.min_confidence > 0 and known.reads_path:
        return None  # what about its neighbours, which are not on the text?
    firsts = {path[:-1] for path in tree.nodes if len(path) == depth and path[-1] == 0}
    if (known.is_full and not known.ends) or firsts.issuperset(above):
        return sure
    present = _present(tree, known, depth) if tree.draw is Draw.DETERMINISTIC else None
    if present is None:
        return None
    return torch.stack([present[path] for path in tree.nodes if len(path) == depth]).amax(dim=0)


def _left_out(
    tree: FixedTree, present: dict[Path, Tensor] | None
) -> Tensor | None:  # [B, T, D + 1]
    if present is None:
        return None
    root = present[tree.nodes[0]]
    found = root.new_zeros(*root.shape, tree.max_depth + 1)
    for path in tree.nodes:
        found[..., len(path) :] += 1 - present[path][..., None]
    return found


def _branched(
    tree: FixedTree, known: Known, present: dict[Path, Tensor] | None
) -> Tensor | None:  # [B, T, D + 1]
    """Find out whether candidates have neighbours: at the root they have more than one can hide."""
    sure = known.sure[0].double()
    found = torch.zeros(*sure.shape, tree.max_depth + 1, dtype=sure.dtype, device=sure.device)
    if tree.num_nodes == tree.max_depth:
        return found
    if (1,) in tree.nodes and (tree.max_depth == 1 or known.is_full):
        wide = sure if known.support is None else sure * (known.support > 1)
        found[..., 1:] = wide[..., None]
        return found
    if present is None or not (tree.draw is Draw.DETERMINISTIC or not known.ends):
        return None
    for depth in range(1, tree.max_depth + 1):
        nodes = [path for path in tree.nodes if len(path) <= depth]
        there = torch.stack([present[path] for path in nodes]) > 0
        lengths = torch.tensor([len(path) for path in nodes], device=sure.device)
        deepest = (there * lengths[:, None, None]).amax(dim=0)
        found[..., depth] = (there.sum(dim=0) > deepest).double()
    return found
