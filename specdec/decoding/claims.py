"""Is a proposal what its proposer says of it? Whether a text is lossless rests on that.

A rule is enumerated; a proposer from outside of the package has models and state, and cannot be.
But each proposal of its can be looked at: how its candidates were drawn, and from which
distribution, must be what it declares, and over many draws the tokens must fall as their
distributions say. An argmax draft that is passed off as a sampled one, or i.i.d. siblings without
their repetitions, are found so.
"""

from collections.abc import Sequence

from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.plug_ins import is_ours
from specdec.core.protocols import Proposer, leaves
from specdec.core.values import Context, Draw, Proposal, each_draw

# How unlikely draws must be, ln(1 / p), until nobody believes that the distributions are right;
# every step looks again, so there is room to spare.
DOUBT = 30.0
ROUNDING = 1e-3  # of a row's sum
# Equal siblings of point masses do no harm: the second is never accepted.
DISTINCT = {Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE}


class Deviation:
    """Draws held against their distributions: a sum of terms that have mean 0 if these are right.

    How unlikely such a sum is says Freedman's inequality (1975) for martingales: P(S >= t) is at
    most exp(-t^2 / (2 V + 2 t / 3)), V being the variance of all terms, however the distributions
    varied.
    """

    def __init__(self) -> None:
        self.sum = self._variance = 0.0

    def add(self, difference: float, variance: float) -> None:
        """Note how far one draw was from its mean, and the variance that it has."""
        self.sum += difference
        self._variance += max(0.0, variance)

    @property
    def is_doubtful(self) -> bool:
        """Whether no luck explains the sum."""
        room = 2 * self._variance + 2 * abs(self.sum) / 3
        return room > 0 and self.sum**2 / room > DOUBT


class Claims:
    """What is held against the proposals of one proposer, over all that it decodes."""

    def __init__(self, proposer: Proposer):
        kind = type(proposer)
        self._name = f"{kind.__module__}.{kind.__qualname__}"
        self._draws = each_draw(proposer.draw)
        self._likely, self._repeated = Deviation(), Deviation()

    def check(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> None:
        """Look at the proposals of one step.

        Raises:
            UserError: there are not as many as requests, or one of them is not what was declared.
        """
        if len(proposals) != len(contexts):
            raise self._wrong(f"{len(proposals)} proposals for {len(contexts)} requests")
        for context, proposal in zip(contexts, proposals, strict=True):
            self._check(context, proposal)
        for seen, what in ((self._likely, "likely tokens"), (self._repeated, "equal siblings")):
            if seen.is_doubtful:
                much = "too many" if seen.sum > 0 else "too few"
                raise self._wrong(f"its tokens are not drawn from its draft_probs: {much} {what}")

    def _check(self, context: Context, proposal: Proposal) -> None:
        tree = proposal.tree
        if tree.token_ids[0] != context.token_ids[-1]:
            raise self._wrong("the root of a proposal is not the last committed token")
        if not tree.num_draft_tokens:
            return
        if proposal.draw not in self._draws:
            declared = " or ".join("None" if each is None else each.value for each in self._draws)
            raise self._wrong(f"candidates that are {proposal.draw.value}, and it says {declared}")
        for parent, children in enumerate(tree.children):
            tokens = [tree.token_ids[child] for child in children]
            if proposal.draw in DISTINCT and len(set(tokens)) < len(tokens):
                raise self._wrong(f"{proposal.draw.value} siblings of which two are equal")
            if proposal.draft_probs is not None and tokens:
                if parent >= len(proposal.draft_probs):
                    raise self._wrong(f"no draft_probs for the children of node {parent}")
                self._hold(tokens, proposal.draft_probs[parent], proposal.draw)

    def _hold(self, tokens: Sequence[int], row: Tensor, draw: Draw) -> None:
        """Hold the children of one node against their distribution."""
        total, least = float(row.sum()), float(row.min())
        whole = abs(total - 1) <= ROUNDING or (draw is Draw.FILTERED and total < 1)
        if not (least >= 0 and whole):
            raise self._wrong(f"draft_probs that are no distribution: they sum to {total:.4g}")
        drawn = tokens[-1:] if draw is Draw.TOP_PLUS_ONE else tokens
        if any(float(row[token]) <= 0 for token in drawn):
            raise self._wrong("a draft token that its draft_probs exclude")
        if draw in (Draw.SINGLE, Draw.IID, Draw.PATHS):
            self._count(tokens, row.double())
        elif draw is Draw.WITHOUT_REPLACEMENT:  # the first is drawn from all of the distribution
            self._count(tokens[:1], row.double())

    def _count(self, tokens: Sequence[int], row: Tensor) -> None:
        squares = row.square()
        mean = float(squares.sum())  # of q(x), and the probability that two draws are equal
        variance = float((squares * row).sum()) - mean**2
        for token in tokens:
            self._likely.add(float(row[token]) - mean, variance)
        if len(tokens) > 1:
            self._repeated.add(float(tokens[0] == tokens[1]) - mean, mean * (1 - mean))

    def _wrong(self, what: str) -> UserError:
        return UserError(
            f"proposer={self._name}: {what}; texts would not be lossless (allow_lossy=true decodes"
            " all the same, and says so)"
        )


def claims_of(proposer: Proposer) -> Claims | None:
    """Return what a proposer from outside of the package is held to; ours are proven by tests."""
    every = [proposer, *leaves(proposer)]
    every += [getattr(each, "inner", each) for each in every]  # who drafts within it counts, too
    return None if all(is_ours(type(each).__module__) for each in every) else Claims(proposer)
