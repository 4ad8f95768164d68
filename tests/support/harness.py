"""One round of drafting and verifying, enumerated exactly.

The criterion: play one round, complete the emitted block with p, and the distribution of the text
must be p's. By induction over rounds the whole text then has p's distribution, provided that each
round's noise is new (that part is tested in tests/decoding, with real streams).
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from specdec.core.outcome import Outcome
from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.tree import CandidateTree
from specdec.core.values import Proposal, Verdict
from specdec.proof.drafting import Drafted, Drafter, Parents, draft_rows
from specdec.proof.enumeration import outcomes
from tests.support.toy import (
    NO_END,
    Conditional,
    TextDistribution,
    Tokens,
    complete,
    is_path,
    text_distribution,
    total_variation,
)


class Block(NamedTuple):
    """What one round emits."""

    token_ids: Tokens
    num_accepted: int


Play = Callable[[Stream], Block]
Seen = TypeVar("Seen", bound=Hashable)


# --- verifying ----------------------------------------------------------------------------------


def played(
    rule: VerificationRule, drafter: Drafter, parents: Parents, p: Conditional, q: Conditional
) -> Play:
    """Return the round of one rule with one drafter, to be played with a stream."""

    def play(stream: Stream) -> Block:
        return verified(rule, drafter(parents, q, stream), p, stream)

    return play


def verified(rule: VerificationRule, proposal: Proposal, p: Conditional, stream: Stream) -> Block:
    """Let the rule decide on a proposal, and return what is emitted."""
    return emitted(proposal, judged(rule, proposal, p, stream))


def judged(rule: VerificationRule, proposal: Proposal, p: Conditional, stream: Stream) -> Verdict:
    """Let the rule decide on a proposal; check that what it decided makes sense."""
    verifier_probs = draft_rows(proposal.tree, p)
    verdict = rule.verify(proposal, verifier_probs.clone(), stream)
    _check(proposal, verdict)
    return verdict


def emitted(proposal: Proposal, verdict: Verdict) -> Block:
    """Return the accepted tokens and the one after them."""
    tokens = tuple(proposal.tree.token_ids[node] for node in verdict.path)
    return Block((*tokens, verdict.next_token), len(verdict.path))


@torch.inference_mode()
def decisions(
    rule: VerificationRule, proposal: Proposal, p: Conditional, seen: Callable[[Verdict], Seen]
) -> dict[Seen, float]:
    """Return the distribution of something about the verdict on one proposal."""
    return outcomes(lambda stream: seen(judged(rule, proposal, p, stream)))


def block_distribution(
    rule: VerificationRule, drafted: Sequence[Drafted], p: Conditional
) -> dict[Block, float]:
    """Return the distribution of what one round emits; as `played`, but drafting only once."""
    distribution: dict[Block, float] = {}
    for proposal, mass in drafted:
        for block, share in decisions(rule, proposal, p, partial(emitted, proposal)).items():
            distribution[block] = distribution.get(block, 0.0) + mass * share
    return distribution


def at_least(blocks: dict[Block, float]) -> list[float]:
    """Return P(A >= d) for d = 1, 2, ..."""
    deepest = max(block.num_accepted for block in blocks)
    return [
        sum(mass for block, mass in blocks.items() if block.num_accepted >= depth)
        for depth in range(1, deepest + 1)
    ]


def _check(proposal: Proposal, verdict: Verdict) -> None:
    tree = proposal.tree
    assert is_path(tree, verdict.path), f"{verdict.path} is no path from the root of {tree}"
    last = verdict.path[-1] if verdict.path else 0
    withheld = proposal.withheld and last == tree.num_draft_tokens
    none_refused = not tree.children[last] and not withheld
    assert none_refused == (verdict.outcome is Outcome.BONUS), (
        f"{verdict.outcome} after node {last} of {tree}: BONUS is where no candidate was refused"
    )


# --- distributions
# ---------------------------------------------------------------------------------------


def bias(play: Play, p: Conditional, length: int) -> float:
    """Return the total variation between one round's text, completed, and p's."""
    return total_variation(completed(outcomes(play), p, length), text_distribution(p, length))


def completed(
    blocks: dict[Block, float], p: Conditional, length: int, ends: frozenset[int] = NO_END
) -> TextDistribution:
    """Continue the emitted blocks with p."""
    texts: TextDistribution = {}
    for block, mass in blocks.items():
        texts[block.token_ids] = texts.get(block.token_ids, 0.0) + mass
    return complete(texts, p, length, ends)


def acceptance(play: Play) -> list[float]:
    """Return P(A >= d) for d = 1, 2, ..."""
    return at_least(outcomes(play))


def depth_of(parents: Parents) -> int:
    """Return the number of levels below the root."""
    return max(CandidateTree(parents, parents).depths)


def names(values: Sequence[object]) -> list[str]:
    """Name parameters in the list of tests."""
    return [str(value) for value in values]
