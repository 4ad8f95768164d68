"""The walk from the root downwards that most rules are: ask the children, else draw a token."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.on_host import together
from specdec.core.randomness import Stream
from specdec.core.shown import Shown
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.each_token import EachToken
from specdec.verification.overlap import overlaps
from specdec.verification.verdicts import Decided, last_of, root_bounds, verdicts

# For each node with candidates a number for each of its children, in drawing order.
PerChild = Mapping[int, Sequence[float]]


def walk(
    tree: CandidateTree,
    accept: PerChild,
    stream: Stream,
    draw: Callable[[int], int] | None = None,
) -> list[int]:
    """Return the accepted path.

    At each node the children are asked in drawing order; if none is accepted, the path ends. With
    `draw`, which gives the token after a node, it goes on if that token is a child's: free, and
    lossless for children that were not drawn.
    """
    path: list[int] = []
    node = ROOT
    while True:
        children = zip(tree.children[node], accept.get(node, ()), strict=False)
        child = next((c for c, probability in children if stream.accept(probability)), None)
        if child is None and draw is not None:
            child = bearer(tree, node, draw(node))
        if child is None:
            return path
        path.append(child)
        node = child


def asked_before(tree: CandidateTree) -> list[int]:  # [N+1]
    """Return how many questions `walk` asks before it ends at each node, all children refused."""
    reached = [0] * len(tree.parents)
    for node, children in enumerate(tree.children):
        for rank, child in enumerate(children, start=1):
            reached[child] = reached[node] + rank
    return [number + len(row) for number, row in zip(reached, tree.children, strict=True)]


def bearer(tree: CandidateTree, node: int, token: int) -> int | None:
    """Return the first child of a node that bears a token, if there is one."""
    return next((c for c in tree.children[node] if tree.token_ids[c] == token), None)


def follow(shown: Shown) -> list[Verdict]:
    """Draw from p at each node and walk on while a child bears the drawn token."""
    tokens = EachToken(shown, shown.probs)
    nodes = None if shown.draw is Draw.DETERMINISTIC else CandidateNodes.of(shown)
    tensors = [] if nodes is None else [overlaps(nodes)[:, None], root_bounds(shown, nodes)]
    probs, *found = together(token_probs(shown)[None], *tensors, *tokens.ahead)
    draws = tokens.choosers(found[len(tensors) :])
    decided = [
        _followed(*each)
        for each in zip(
            shown.proposals, by_tree(shown, probs[0]), draws, shown.streams, strict=True
        )
    ]
    drawn = [draw(last_of(one.path)) for draw, one in zip(draws, decided, strict=True)]
    if nodes is None:
        return verdicts(shown, decided, drawn)
    overlap = nodes.by_request(found[0], len(decided))
    seen = [{node: row[0] for node, row in each.items()} for each in overlap]
    pairs = zip(decided, seen, strict=True)
    decided = [one._replace(overlap=each) for one, each in pairs]
    return verdicts(shown, decided, drawn, nodes, found[1][0])


def _followed(
    proposal: Proposal, probs: Sequence[float], draw: Callable[[int], int], stream: Stream
) -> Decided:
    share = borne(proposal.tree, probs)
    some = {node: sum(each) for node, each in share.items()}  # the overlap with point masses, too
    path = walk(proposal.tree, {}, stream, draw)
    return Decided(path, expected_accepted(proposal.tree, share, some), some)


def by_tree(shown: Shown, values: Sequence[float]) -> list[Sequence[float]]:  # [N of all] -> [B][N]
    """Cut what is known of all draft tokens into trees."""
    sizes = [each.tree.num_draft_tokens for each in shown.proposals]
    ends = [*accumulate(sizes, initial=0)]
    return [values[start:end] for start, end in pairwise(ends)]


def token_probs(shown: Shown) -> Tensor:  # [N of all trees]
    """Return p of each draft token after its parent, tree by tree."""
    trees = [each.tree for each in shown.proposals]
    above = [(owner, node) for owner, tree in enumerate(trees) for node in tree.parents[1:]]
    token_ids = [token for tree in trees for token in tree.token_ids[1:]]
    if not above:
        return shown.probs.new_zeros(0)
    rows = [owner * shown.probs.shape[1] + node for owner, node in above]
    there, tokens = on_device([rows, token_ids], shown.probs.device)
    return shown.probs.flatten(0, 1)[there, tokens]


def borne(tree: CandidateTree, probs: Sequence[float]) -> dict[int, list[float]]:
    """Return P(the verifier's draw goes on to this child): p of its token, 0 if a sibling has it.

    For each node a list, for its children in order. `probs` are those of `token_probs`.
    """
    share: dict[int, list[float]] = {}
    for child in range(1, len(tree.parents)):
        parent = tree.parents[child]
        first = bearer(tree, parent, tree.token_ids[child]) == child
        share.setdefault(parent, []).append(probs[child - 1] if first else 0.0)
    return share


def shares(accept: PerChild) -> dict[int, list[float]]:
    """Return P(go on with this child | its parent is reached) from P(accept | asked)."""
    share: dict[int, list[float]] = {}
    for node, row in accept.items():
        live = 1.0
        share[node] = []
        for probability in row:
            share[node].append(live * probability)
            live *= 1 - probability
    return share


def expected_accepted(tree: CandidateTree, share: PerChild, some: Mapping[int, float]) -> float:
    """Return E[A] given the candidates: the sum over nodes of P(reached) * P(some child accepted).

    `some` may have the noise of a node's own candidates averaged out, where a formula is known:
    that lowers the variance and leaves the mean as it is (Rao-Blackwell).
    """
    reached = {ROOT: 1.0}
    for node, row in share.items():  # parents stand before their children
        for child, probability in zip(tree.children[node], row, strict=False):
            reached[child] = reached[node] * probability
    return sum(reached[node] * value for node, value in some.items())
