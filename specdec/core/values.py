"""The values that proposers, rules and the decoder hand to each other; each is about one request.

Letters: N draft tokens of a tree (N + 1 nodes), A accepted draft tokens, V vocabulary, H hidden
size. `p` is the verifier's law and `q` the draft's, both after temperature, top-k, top-p, min-p.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from torch import Tensor

from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree

# A hidden layer: the index of a decoder layer, or "final" for what the vocabulary head reads.
Layer = int | str


class Draw(Enum):
    """How the children of a node were chosen; a rule says for which of these it is lossless."""

    DETERMINISTIC = "deterministic"  # point masses: n-grams, top-k, Medusa
    IID = "iid"  # independent draws from q


class Outcome(Enum):
    """Where the last token of a step came from."""

    BONUS = "bonus"  # all candidates on the path accepted; the next token is drawn from p
    RECOVERED = "recovered"  # a candidate was rejected; the next token is drawn from the residual
    ENDED = "ended"  # the text ended within the accepted draft tokens; no further token is drawn


@dataclass(frozen=True)
class Context:
    """What a proposer and a rule may know about a request at the start of a step.

    `token_ids` is the live text: after the step's commit it holds the emitted tokens too.
    """

    row: int  # the request's row in every KV cache, its own as long as it is in flight
    request_id: str  # one turn of one prompt
    token_ids: Sequence[int]  # [T] committed tokens, the prompt included
    num_prompt_tokens: int
    sampling: Sampling
    budget: int  # tokens that may still be emitted, at least 1
    draft_stream: RandomStream
    verify_stream: RandomStream
    # Per layer asked for: the verifier's hidden states [n, H] of the positions that were committed
    # since the last `propose`; the first has those of the prompt, `reset` none. They end one
    # position before the last committed token, which the verifier has not read yet.
    features: Mapping[Layer, Tensor] = field(default_factory=dict[Layer, Tensor])

    @property
    def max_depth(self) -> int:
        """The deepest draft token worth having: the verifier adds one token of its own."""
        return self.budget - 1


@dataclass(frozen=True)
class Proposal:
    """A candidate tree and the law it was drawn from.

    Row i of `draft_probs` is the law q that the children of node i were drawn from, exactly as it
    was used (same temperature, same type); rows of childless nodes at the end may be missing.
    Deterministic candidates have none: each is a point mass.
    """

    tree: CandidateTree
    draw: Draw = Draw.DETERMINISTIC
    draft_probs: Tensor | None = None  # [M, V], M > every node with children
    num_draft_calls: int = 0

    def __post_init__(self) -> None:
        assert (self.draft_probs is None) == (self.draw is Draw.DETERMINISTIC)

    def pruned(self, max_depth: int, end_ids: frozenset[int]) -> "Proposal":
        """Drop the nodes that could never be emitted; see `CandidateTree.pruned`."""
        tree, kept = self.tree.pruned(max_depth, end_ids)
        if tree is self.tree:
            return self
        rows = self.draft_probs
        if rows is not None:
            rows = rows[[node for node in kept if node < len(rows)]]
        return replace(self, tree=tree, draft_probs=rows)


@dataclass(frozen=True)
class Level:
    """One level of candidates: child j hangs from node `parents[j]` of the level above it.

    The shape is the same for all B requests; children of one node stand in drawing order.
    """

    parents: tuple[int, ...]  # [C]
    token_ids: Tensor  # [B, C] int64


@dataclass(frozen=True)
class Verdict:
    """What a rule decided: the accepted nodes, from depth 1 downwards, and the token after them."""

    path: tuple[int, ...]  # [A] node numbers
    next_token: int
    outcome: Outcome
