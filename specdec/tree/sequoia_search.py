"""The best trees of sampled children, from how often each child is the accepted one.

Let p_d(b) be the probability that the b-th child of a node at depth d - 1 is the one that is
accepted, given that the node is reached: its positional acceptance. A tree accepts one token for
each node of the accepted path, so the expected number of accepted tokens is

    E[A] = sum over nodes of the product of p along the path from the root.

Children are asked in drawing order, so that a node with a b-th child has all those before it.
"""

from collections.abc import Sequence

import torch

from specdec.core.on_host import floats, integers
from specdec.tree.fixed import Path

NEVER = float("-inf")


class PositionalTrees:
    """The trees of at most 1, 2, ..., N nodes that accept the most tokens, none deeper than D.

    `acceptance[d][b]` is p of child b at depth d + 1, [D, K]. With F_d(n) the most tokens that n
    nodes below a node at depth d accept, and G_d(b, n) the part of children b, b + 1, ...:

        G_d(b, n) = max(0, max over y = 1 ... n of p_d+1(b) (1 + F_d+1(y - 1)) + G_d(b + 1, n - y))
        F_d(n)    = G_d(1, n);   F_D(n) = 0;   G_d(K + 1, n) = 0

    This is the recursion of Sequoia (Chen et al. 2024, arXiv 2402.12374, section 3.1), with a
    vector for each depth. Nodes that would accept nothing are left out, and of equally good trees
    one is chosen whose later children have the more nodes. Takes O(D K N^2) time.
    """

    def __init__(self, acceptance: Sequence[Sequence[float]], num_nodes: int):
        self.num_nodes = num_nodes
        size = torch.arange(num_nodes + 1)
        rest = size[:, None] - size  # [n, y]
        inside = (rest >= 0) & (size > 0)
        rest = rest.clamp(min=0)
        below = torch.zeros(num_nodes + 1, dtype=torch.float64)  # F_d
        # Per depth and child, [n]: the nodes that go to this child and what is below it; 0: none.
        self._shares: list[list[list[int]]] = []
        for row in reversed(acceptance):
            with_own = 1 + below.roll(1)  # [y]: 1 + F(y - 1), where y > 0
            best = torch.zeros_like(below)  # G_d(K + 1)
            shares: list[list[int]] = []
            for p in reversed(row):
                # Share n nodes out between this child and those after it; 0: neither is there.
                total = (p * with_own + best[rest]).masked_fill(~inside, NEVER)
                total[:, 0] = 0.0
                best, share = total.max(dim=1)
                shares.insert(0, integers(share))
            below = best
            self._shares.insert(0, shares)
        self._accepted = floats(below)

    def expected_accepted(self, num_nodes: int) -> float:
        """Return E[A] of the best tree of at most that many nodes."""
        return self._accepted[num_nodes]

    def nodes(self, num_nodes: int) -> list[Path]:
        """Return the paths of that tree, each behind its beginnings."""
        found: list[Path] = []
        open_nodes: list[tuple[Path, int]] = [((), num_nodes)]
        while open_nodes:
            above, left = open_nodes.pop()
            if len(above) == len(self._shares):
                continue
            for child, shares in enumerate(self._shares[len(above)]):
                share = shares[left]
                if share == 0:
                    break
                found.append((*above, child))
                open_nodes.append((found[-1], share - 1))
                left -= share
        return found
