"""P(at least k draft tokens are accepted | the text), wherever a step might begin.

B texts of up to T tokens. A step that begins at s emits token s first; its candidates at depth d
(from 1) compete with token s + d - 1. Given the text, whoever is at depth d is on the text, so all
nodes of a depth see the same p and q there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.tree.fixed import Path


def ahead(values: Tensor, depth: int) -> Tensor:  # [B, T, ...] -> [B, T, ...]
    """Return at s what stands at s + depth - 1; behind the end zeros."""
    if depth == 1:
        return values
    moved = torch.zeros_like(values)
    moved[:, : values.shape[1] - depth + 1] = values[:, depth - 1 :]
    return moved


def behind(values: Tensor, depth: int) -> Tensor:  # [B, T, ...] -> [B, T, ...]
    """Undo `ahead`: return at s + depth - 1 what stands at s; before that zeros."""
    if depth == 1:
        return values
    moved = torch.zeros_like(values)
    moved[:, depth - 1 :] = values[:, : values.shape[1] - depth + 1]
    return moved


def of_tree(nodes: Sequence[Path], shares: Sequence[Tensor]) -> Tensor:  # [B, T, D + 1] float64
    """Walk down a tree of fixed shape, whose paths are numbers of children.

    `shares[d - 1]` [B, T, K] are the shares of the children at depth d of a step that begins at s:
    P(this child is the accepted one | its parent was reached, the text).
    """
    depth = max(map(len, nodes), default=0)
    root = shares[0].new_ones(shares[0].shape[:2], dtype=torch.float64)
    reached: dict[Path, Tensor] = {(): root}
    survival = [root, *(torch.zeros_like(root) for _ in range(depth))]
    for path in sorted(nodes, key=len):
        reached[path] = reached[path[:-1]] * shares[len(path) - 1][..., path[-1]]
        survival[len(path)] = survival[len(path)] + reached[path]
    # Rounding may leave a hair beyond what a probability can be.
    return torch.stack(survival, dim=-1).clamp(max=1)
