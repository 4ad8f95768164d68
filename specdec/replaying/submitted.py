"""Which candidates a step puts to the verifier, as far as the text tells.

Whether drafting goes on is decided after each candidate, and nothing is submitted below one that
ends the text. On the text that is known; of candidates beside it only what was drawn right behind
the text is. Columns that depend on more are left out.
"""

from collections.abc import Mapping, Sequence
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
        """Return nothing, where nothing is wanted."""
        return cls([None] * depth, None, None)


@dataclass(frozen=True)
class Known:
    """What decides on the candidates of one arm; per depth from 1, along B texts."""

    sure: Sequence[Tensor]  # each [B, T] bool: whether drafting goes on to that depth on the text
    # Of filtered chains, each [B, T]: P(the drawn token passes | the text, A >= d - 1).
    passes: Sequence[Tensor | None] | None
    support: Sequence[Tensor | None]  # each [B, T]: how many tokens there are; None: enough
    is_full: bool  # whether all nodes, wherever they are, have as many children as the tree says
    ends: bool  # whether some tokens end a text, so that nothing is submitted below them
    # Each [B, T]: P(a candidate with children ends the text | the text), where that is known.
    ended: Mapping[Path, Tensor]
    stuck: Tensor | None  # [B, T]: P(all of them at depth 1 do | the text, A >= 1); None: unknown
    reads_path: bool  # whether a distribution depends on the candidates before


def submitted(tree: FixedTree, known: Known) -> Submitted:
    """Find what of a tree is submitted."""
    present = _present(tree, known, tree.max_depth)
    tested = [_tested(tree, known, depth) for depth in range(1, tree.max_depth + 1)]
    return Submitted(tested, _left_out(tree, present), _branched(tree, known, present))


def _present(tree: FixedTree, known: Known, deepest: int) -> dict[Path, Tensor] | None:  # of [B, T]
    """Return P(a node is submitted | the text), if that is known of all nodes down to a depth."""
    if known.passes is not None:
        passes = known.passes[0] if tree.max_depth == 1 else None
        return None if passes is None else {(0,): known.sure[0] * passes}
    if deepest > 1 and tree.min_confidence > 0 and known.reads_path:
        return None  # whether drafting goes on is known of candidates right behind the text alone
    found: dict[Path, Tensor] = {(): torch.ones_like(known.sure[0], dtype=torch.float64)}
    for path in (path for path in tree.nodes if len(path) <= deepest):
        above = found[path[:-1]] * known.sure[len(path) - 1]
        if known.ends and len(path) > 1:
            ended = known.ended.get(path[:-1])
            if ended is None:
                return None
            above = above * (1 - ended.double())
        is_there = _is_there(known, path)
        if is_there is None:
            return None
        found[path] = above * is_there
    return found


def _is_there(known: Known, path: Path) -> Tensor | bool | None:  # [B, T] bool
    """Say whether a node has tokens enough for a child; None: that is not known."""
    support = known.support[len(path) - 1]
    if support is None or path[-1] == 0:
        return True
    if len(path) == 1 or not known.reads_path:
        return path[-1] < support
    return True if known.is_full else None


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
    if tree.draw is Draw.DETERMINISTIC:
        present = _present(tree, known, depth)
        if present is None:
            return None
        return torch.stack([present[path] for path in tree.nodes if len(path) == depth]).amax(dim=0)
    return _tested_beside(tree, known, sure) if depth == 2 else None


def _tested_beside(tree: FixedTree, known: Known, sure: Tensor) -> Tensor | None:  # [B, T]
    """Return the same at depth 2 where the accepted candidate may be one without children."""
    if known.ends:
        return None if known.stuck is None else sure * (1 - known.stuck)
    first = min(path for path in tree.nodes if len(path) == 2)
    is_there = _is_there(known, first[:1])
    assert is_there is not None
    return sure * is_there


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
    if (1,) in tree.nodes:
        support = known.support[0]
        wide = sure if support is None else sure * (support > 1)
        found[..., 1:] = wide[..., None]
        alone = [path for path in tree.nodes if path[0] == 0]  # where there is one child only
        return found if known.is_full or len(alone) == max(map(len, alone)) else None
    if present is None:
        return None
    if tree.draw is not Draw.DETERMINISTIC and known.ends:
        if tree.max_depth > 2:
            return None
        found[..., 2] = present[0, 1]
        return found
    for depth in range(1, tree.max_depth + 1):
        nodes = [path for path in tree.nodes if len(path) <= depth]
        there = torch.stack([present[path] for path in nodes]) > 0
        lengths = torch.tensor([len(path) for path in nodes], device=sure.device)
        deepest = (there * lengths[:, None, None]).amax(dim=0)
        found[..., depth] = (there.sum(dim=0) > deepest).double()
    return found
