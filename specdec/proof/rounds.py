"""One round of a rule, played in all its ways: what it emits, and how far that is from p's text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from specdec.core.outcome import Outcome
from specdec.core.protocols import VerificationRule
from specdec.core.shown import Shown
from specdec.core.tree import ROOT
from specdec.core.values import Proposal, Verdict
from specdec.core.verified import verified
from specdec.proof.cases import Case, drafted
from specdec.proof.drafting import Conditional, Tokens, draft_rows
from specdec.proof.enumeration import BranchingStream, plays

LEAST = 1e-8  # what is rarer is not played


@dataclass(frozen=True)
class Enumerated:
    """What a rule makes of a case: the distribution of its texts, and what it accepts."""

    blocks: dict[Tokens, float]
    accepted: float
    expected_accepted: float | None  # what the rule says of it; None: nothing
    num_decisions: int  # that the stream was asked for


@torch.inference_mode()
def enumerated(rule: VerificationRule, case: Case) -> Enumerated:
    """Play one round in all its ways."""
    blocks: dict[Tokens, float] = {}
    accepted = expected = 0.0
    is_said, num_decisions = True, 0
    for proposal, mass in drafted(case):
        for (verdict, count), share in plays(partial(_decided, rule, proposal, case), LEAST):
            block = _emitted(proposal, verdict)
            weight = mass * share
            blocks[block] = blocks.get(block, 0.0) + weight
            accepted += weight * len(verdict.path)
            num_decisions += count
            if verdict.expected_accepted is None:
                is_said = False
            else:
                expected += weight * verdict.expected_accepted
    return Enumerated(blocks, accepted, expected if is_said else None, num_decisions)


@torch.inference_mode()
def blocks_on(rule: VerificationRule, proposal: Proposal, case: Case) -> dict[Tokens, float]:
    """Return how likely a rule emits what on one proposal of a case."""
    blocks: dict[Tokens, float] = {}
    for (verdict, _), share in plays(partial(_decided, rule, proposal, case), LEAST):
        block = _emitted(proposal, verdict)
        blocks[block] = blocks.get(block, 0.0) + share
    return blocks


def _decided(
    rule: VerificationRule, proposal: Proposal, case: Case, stream: BranchingStream
) -> tuple[Verdict, int]:
    """Let the rule decide; what it does to its tensors is no other decision's business."""
    rows = proposal.draft_probs
    shown = proposal if rows is None else replace(proposal, draft_probs=rows.clone())
    p = draft_rows(proposal.tree, case.table.p)
    (verdict,) = verified(rule, Shown([shown], p[None], [stream]))  # as the decoder lets it decide
    return verdict, len(stream.taken)


def _emitted(proposal: Proposal, verdict: Verdict) -> Tokens:
    """Return the tokens of a verdict.

    Raises:
        ValueError: it is no verdict on this proposal.
    """
    tree, above = proposal.tree, ROOT
    for node in verdict.path:
        if not 0 < node <= tree.num_draft_tokens or tree.parents[node] != above:
            raise ValueError(f"accepts {tuple(verdict.path)}, which is no path from the root")
        above = node
    withheld = proposal.withheld and above == tree.num_draft_tokens
    right = Outcome.RECOVERED if tree.children[above] or withheld else Outcome.BONUS
    if verdict.outcome is not right:
        raise ValueError(f"calls a token {verdict.outcome} that is {right}")
    return (*(tree.token_ids[node] for node in verdict.path), int(verdict.next_token))


def off_by(blocks: Mapping[Tokens, float], p: Conditional, length: int) -> float:
    """Return the total variation between p's text and what was emitted, completed with p."""
    return 0.5 * sum(abs(mass) for mass in _difference(blocks, p, length).values())


def _difference(blocks: Mapping[Tokens, float], p: Conditional, length: int) -> dict[Tokens, float]:
    """Return P(emitted and completed) - P(p's text), for every text of `length` tokens."""
    # Both are completed with the same p: level by level, with p's text as one more, negative block.
    here: dict[Tokens, float] = {(): -1.0}
    for count in range(length):
        longer: dict[Tokens, float] = {}
        for text, mass in here.items():
            for token, probability in enumerate(_row(p, text)):
                if probability > 0:
                    longer[*text, token] = mass * probability
        for block, mass in blocks.items():
            if len(block) == count + 1:
                longer[block] = longer.get(block, 0.0) + mass
        here = longer
    return here


@cache
def _row(p: Conditional, text: Tokens) -> list[float]:
    row: list[float] = p(text).double().tolist()
    return [value / sum(row) for value in row]
