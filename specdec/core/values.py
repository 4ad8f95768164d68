"""The values that proposers, rules and the decoder hand to each other; each is about one request.

Letters: N draft tokens of a tree (N + 1 nodes), A accepted draft tokens, V vocabulary, H hidden
size. `p` is the verifier's distribution and `q` the draft's, both after temperature, top-k, top-p,
min-p.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeGuard, cast

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.outcome import Outcome
from specdec.core.processing import Processor
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree

# A hidden layer: the index of a decoder layer, or "final" for what the vocabulary head reads.
Layer = int | str
FINAL: Layer = "final"


class Draw(Enum):
    """How the children of a node were chosen; a rule says for which of these it is lossless."""

    DETERMINISTIC = "deterministic"  # point masses: n-grams, top-k, Medusa
    SINGLE = "single"  # one draw from q: a sampled chain
    IID = "iid"  # independent draws from q, so that one token can come twice
    PATHS = "paths"  # whole chains of single draws, independent of each other: only the root forks
    WITHOUT_REPLACEMENT = "without_replacement"  # each from q without the tokens drawn before it
    TOP_PLUS_ONE = "top_plus_one"  # the likeliest tokens of q, then one draw from the rest of it
    # One draw from q, submitted only if it passes a filter. `draft_probs` hold what q gives to the
    # tokens that pass, not renormalised: what a row lacks is the probability of no candidate.
    FILTERED = "filtered"


# How a proposer's candidates are chosen: in one way, or each proposal in one of several.
# None: it has no candidates.
Draws = Draw | frozenset[Draw] | None


def are_draws(value: object) -> TypeGuard[Draws]:
    """Whether a value says how candidates are chosen."""
    if isinstance(value, frozenset):
        return all(isinstance(each, Draw) for each in cast(frozenset[object], value))
    return value is None or isinstance(value, Draw)


def each_draw(draws: Draws) -> tuple[Draw | None, ...]:
    """Return the ways one by one, in the order of their names."""
    if draws is None or isinstance(draws, Draw):
        return (draws,)
    return tuple(sorted(draws, key=str))


def united(draws: Iterable[Draws]) -> Draws:
    """Return how candidates are chosen that come from several proposers."""
    found = frozenset(draw for each in draws for draw in each_draw(each) if draw is not None)
    return next(iter(found), None) if len(found) <= 1 else found


class CandidateSource(Enum):
    """What a proposer's candidates come from, as its class declares it in `source`."""

    NOTHING = "nothing"  # it proposes nothing: autoregressive decoding
    TEXT = "text"  # copied from a text; of its tree it heeds the length alone
    MODEL = "model"  # the probabilities of a language model of its own
    HEADS = "heads"  # heads on the hidden states of the verifier, which they are given
    PARTS = "parts"  # other proposers, which are its parts
    VERIFIER = "verifier"  # layers of the verifier itself, which it is given


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
    # Tokens that the verifier's cache has room for before it is emptied; None: it never is.
    room: int | None = None
    # How deep the arm's pace lets candidates go; None: as deep as the proposer's go.
    depth: int | None = None
    # No children for a node whose likeliest next token is less likely to the draft than this.
    min_confidence: float = 0.0
    # What the distribution applies to logits after this prompt; a draft that does the same agrees
    # more.
    processors: Sequence[Processor] = ()

    @property
    def max_depth(self) -> int:
        """The deepest draft token worth having: the verifier adds one token of its own.

        The root takes one of the places that a cache has room for.
        """
        most = self.budget if self.room is None else min(self.budget, self.room)
        return most - 1 if self.depth is None else min(most - 1, self.depth)


@dataclass(frozen=True)
class Proposal:
    """A candidate tree and the distribution it was drawn from.

    Row i of `draft_probs` is the distribution q that the children of node i were drawn from,
    exactly as it was used (same temperature, same type); rows of childless nodes at the end may be
    missing. Deterministic candidates have none: each is a point mass.
    """

    tree: CandidateTree
    draw: Draw = Draw.DETERMINISTIC
    draft_probs: Tensor | None = None  # [M, V], M > every node with children
    num_draft_calls: int | None = None  # forwards of the draft; None: it does not say
    withheld: bool = False  # FILTERED: one more token was drawn below the last node, and not shown
    # Of candidates that are looked up: the last tokens of the text that were found elsewhere, which
    # the candidates stand behind there. None: they were not looked up, or nothing was found.
    matched: int | None = None

    def __post_init__(self) -> None:
        assert (self.draft_probs is None) == (self.draw is Draw.DETERMINISTIC)
        assert not self.withheld or self.draw is Draw.FILTERED

    @property
    def has_candidates(self) -> bool:
        """Whether there is any, shown or withheld."""
        return self.withheld or self.tree.num_draft_tokens > 0

    def pruned(
        self, max_depth: int, end_ids: frozenset[int], ends: frozenset[int] = frozenset()
    ) -> "Proposal":
        """Drop the nodes that could never be emitted; see `CandidateTree.pruned`."""
        tree, kept = self.tree.pruned(max_depth, end_ids, ends)
        # A chain that was cut ends where the cut is, not where its filter ended it. So does one
        # whose withheld token lies beyond the cut: it would have been dropped if it were shown.
        full = max(tree.depths) >= max_depth
        ended = kept[-1] > 0 and (tree.token_ids[-1] in end_ids or kept[-1] in ends)
        withheld = self.withheld and tree is self.tree and not full and not ended
        if tree is self.tree and withheld == self.withheld:
            return self
        rows = self.draft_probs
        if rows is not None:
            inner = [node for node in kept if node < len(rows)]
            rows = rows[on_device(inner, rows.device, torch.int64)]
        return replace(self, tree=tree, draft_probs=rows, withheld=withheld)


# Parents [C] and frontier [F'] of a level as numbers on the host; see Level.
LevelShape = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Level:
    """One level of candidates, C for each of B requests, on the device.

    Candidate j hangs from node `parents[:, j]` of the frontier: those candidates of the level above
    whose distributions were asked for. Children of one node stand in drawing order. The same number
    for every request, for the device's sake: what is not `there` is left out of the tree in the
    end.
    """

    token_ids: Tensor  # [B, C] int64
    parents: Tensor  # [B, C] int64, < F
    frontier: Tensor  # [B, F'] int64, < C: the candidates that may get children, ascending
    there: Tensor | None = None  # [B, C] bool; None: all of them
    shown: Tensor | None = None  # [B, C] bool; FILTERED: whether it is submitted; None: all of them
    # [B, F, V]: the distributions as the rule knows them, where they are not those that were
    # given.
    draft_probs: Tensor | None = None
    scores: Tensor | None = None  # [B, C]: what the policy orders candidates by, if it does
    shape: LevelShape | None = None  # where it is the same for every request


@dataclass(frozen=True)
class Verdict:
    """What a rule decided: the accepted nodes, from depth 1 downwards, and the token after them.

    The rest is what the rule saw while it decided, for the metrics of the same names; entry k of a
    tuple is about the node at depth k of the path.
    """

    path: tuple[int, ...]  # [A] node numbers
    next_token: int
    outcome: Outcome
    # E[A] with the rule's noise averaged out, where possible the draft's too; None: unknown.
    expected_accepted: float | None = None
    overlap: tuple[float, ...] = ()  # per visited node with candidates: sum_v min(p, q)
    # At the root, of sampled candidates: the most that as many i.i.d. draws allow. Else empty.
    bound: tuple[float, ...] = ()
    # Rules that are not lossless, per visited node: total variation and KL (in nats) from p to the
    # distribution that its next token was emitted by.
    divergence: tuple[tuple[float, float], ...] = ()
