"""What proposers share whose candidates are looked up: what followed the same tokens elsewhere.

Where the end of a text occurs a second time, in the text itself or in another one, that place is a
match. A place knows what it goes on with, and how often; of that a chain or a tree is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import ceil
from typing import NamedTuple, Protocol

from specdec.core.errors import require_int, require_number
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import CandidateSource, Context, Draw, Layer, Proposal


class Place(Protocol):
    """A sequence of tokens that occurs in what is looked up, and what follows it there."""

    def goes_on(self) -> Sequence[tuple[int, int, "Place"]]:
        """Return what follows, the most frequent first: a token, how often, and the place then."""
        ...


class Matched(NamedTuple):
    """The last `length` tokens of a text, where else they occur."""

    length: int
    place: Place


class Lookup(ABC):
    """Propose what follows the longest match, as a chain or as a tree of what is frequent.

    Candidates are point masses, so that the text stays lossless at any temperature.

    Args:
        gamma: the deepest draft token.
        min_matched: tokens of the text that must be found elsewhere; else nothing is proposed.
        depth_per_matched: draft tokens for each token that was found, at most gamma: the longer the
            match, the further it is trusted (SuffixDecoding, arXiv 2411.04975); None: gamma.
        num_nodes: draft tokens of a tree; None: a chain of what follows most often.

    Raises:
        UserError: a number is out of its range.
    """

    source = CandidateSource.TEXT
    draw = Draw.DETERMINISTIC
    layers: Sequence[Layer] = ()

    def __init__(
        self,
        gamma: int,
        min_matched: int = 1,
        depth_per_matched: float | None = None,
        num_nodes: int | None = None,
    ):
        require_int("gamma", gamma, 1)
        require_int("min_matched", min_matched, 1)
        if depth_per_matched is not None:
            require_number("depth_per_matched", depth_per_matched, 0.01)
        if num_nodes is not None:
            require_int("num_nodes", num_nodes, 1)
        self.max_depth = gamma
        self.branches = num_nodes is not None  # whether its trees do
        self._min_matched = min_matched
        self._depth_per_matched = depth_per_matched
        self._num_nodes = num_nodes

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Look up how each text may go on."""
        return [self._proposal(context) for context in contexts]

    def _proposal(self, context: Context) -> Proposal:
        found = self._matches(context)
        matches = [match for match in found if match.length >= self._min_matched]
        matched = matches[0].length if matches else 0
        tree = self._grown(context.token_ids[-1], matches, self._depth(context, matched))
        return Proposal(tree, num_draft_calls=0, matched=matched or None)

    def _depth(self, context: Context, matched: int) -> int:
        most = min(self.max_depth, context.max_depth)
        if self._depth_per_matched is None:
            return most
        return min(most, ceil(self._depth_per_matched * matched))

    def _grown(self, root: int, matches: Sequence[Matched], depth: int) -> CandidateTree:
        if self._num_nodes is None:
            return CandidateTree.chain(root, chain_behind(matches, depth))
        return tree_behind(root, matches, depth, self._num_nodes)

    @abstractmethod
    def _matches(self, context: Context) -> Sequence[Matched]:
        """Return where the end of a text occurs otherwise, longer matches first."""


def chain_behind(matches: Sequence[Matched], depth: int) -> list[int]:
    """Return what follows the longest match most often, token by token."""
    token_ids: list[int] = []
    place = matches[0].place if matches else None
    while place is not None and len(token_ids) < depth:
        following = place.goes_on()
        token, _, place = following[0] if following else (-1, 0, None)
        if place is not None:
            token_ids.append(token)
    return token_ids


def tree_behind(root: int, matches: Iterable[Matched], depth: int, num_nodes: int) -> CandidateTree:
    """Grow a tree of what is likeliest to follow; what the longest match leaves, shorter ones fill.

    A continuation that was seen c times out of n has probability c / (n + 1) after its parent: one
    of n + 1 is kept for what was never seen. Nodes come in the order of their paths' probabilities.
    """
    growing = _Growing(root, depth)
    for match in matches:
        growing.go_on(ROOT, match.place, 1.0, 1)
        while growing.waiting and len(growing.nodes) < num_nodes:
            growing.add_likeliest()
        growing.waiting.clear()
    return CandidateTree(tuple(growing.token_ids), tuple(growing.parents))


class _Waiting(NamedTuple):
    """A candidate that may get into the tree; the least of them is the likeliest."""

    unlikely: float  # minus the probability of its path
    order: int  # among equals, what was found first
    parent: int
    token: int
    place: Place
    depth: int


class _Growing:
    def __init__(self, root: int, depth: int):
        self.token_ids, self.parents = [root], [-1]
        self.nodes: dict[tuple[int, int], int] = {}  # by parent and token
        self.waiting: list[_Waiting] = []
        self._depth = depth
        self._order = count()

    def go_on(self, node: int, place: Place, likely: float, depth: int) -> None:
        """Let what follows a node wait for its turn."""
        following = place.goes_on() if depth <= self._depth else ()
        total = 1 + sum(often for _, often, _ in following)
        for token, often, there in following:
            unlikely = -likely * often / total
            each = _Waiting(unlikely, next(self._order), node, token, there, depth)
            heappush(self.waiting, each)

    def add_likeliest(self) -> None:
        """Add a node, unless a longer match has it already, and go on below it."""
        found = heappop(self.waiting)
        node = self.nodes.setdefault((found.parent, found.token), len(self.token_ids))
        if node == len(self.token_ids):
            self.token_ids.append(found.token)
            self.parents.append(found.parent)
        self.go_on(node, found.place, -found.unlikely, found.depth + 1)
