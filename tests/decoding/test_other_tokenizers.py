"""Drafts of another tokenizer, enumerated through the real loop: the text is p's to 1e-12.

The verifier has a, b and ab, the draft b, a and ba: one text has several encodings in both, and
what is committed becomes other tokens of the draft's while it grows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest
from torch import Tensor

from specdec.core.protocols import Proposer, TreePolicy, VerificationRule
from specdec.core.values import Context, Draw, Proposal
from specdec.decoding.stopping import Stopping
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.draft_tokens import CommonTokens
from specdec.tree.chain import Chain
from specdec.verification.block import Block
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.traversal import Traversal
from tests.support.arms import PROMPT, decoder
from tests.support.enumerated import written
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingFiltered,
    ChoosingTree,
    EnumeratedStream,
    TextDistribution,
    full_context,
    gridded,
    text_distribution,
    total_variation,
)
from tests.support.translating import toy_draft

EXACT = 1e-12
CELLS = 3  # of the grid of drafts that are drawn by inverting q
LENGTH = 3
TARGET = full_context(11, 1.0)
DRAFT = full_context(12, 1.0)
ON_GRID = gridded(13, CELLS)


@dataclass(frozen=True)
class Arm:
    """A way to draft, and the rule that decides."""

    name: str
    kind: str
    tree: TreePolicy
    rule: VerificationRule
    temperature: float | None = None

    def __str__(self) -> str:
        return self.name

    def make(self) -> DraftModel:
        table = ON_GRID if isinstance(self.tree, Chain) else DRAFT
        return DraftModel(toy_draft(self.kind, table), self.tree, self.temperature)


FORK = (-1, 0, 0)
OTHERS = Draw.WITHOUT_REPLACEMENT
ARMS = [
    Arm("common, chain", "intersection", ChoosingChain(2), Rejection()),
    Arm("common, block", "intersection", ChoosingChain(2), Block()),
    Arm("common, match", "intersection", ChoosingChain(2), Match()),
    Arm("common, filtered", "intersection", ChoosingFiltered(2, 0.3), Rejection()),
    Arm("common, iid", "intersection", ChoosingTree(FORK, Draw.IID), Rejection()),
    Arm("common, traversal", "intersection", ChoosingTree(FORK, Draw.IID), Traversal()),
    Arm("common, other draw", "intersection", ChoosingTree(FORK, OTHERS), Rejection()),
    Arm("text", "strings", ChoosingChain(2), Rejection(), 1.0),
    Arm("text, match", "strings", ChoosingChain(2), Match(), 1.0),
    Arm("text that is drawn from a grid", "strings", Chain(2), Rejection(), 1.0),
    Arm("likeliest text", "strings", ChoosingChain(2), Rejection()),
]


def distribution(
    proposer: Proposer, rule: VerificationRule, ends: frozenset[int]
) -> TextDistribution:
    speculative = decoder(proposer, TARGET, rule=rule, stopping=Stopping(LENGTH, ends))
    return written(speculative, PROMPT, partial(EnumeratedStream, cells=CELLS))


@pytest.mark.parametrize("ends", [NO_END, frozenset({1})], ids=["endless", "ends"])
@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_the_text_has_exactly_the_verifier_s_distribution(arm: Arm, ends: frozenset[int]) -> None:
    found = distribution(arm.make(), arm.rule, ends)
    expected = text_distribution(TARGET, LENGTH, ends, PROMPT)
    assert total_variation(found, expected) < EXACT


class Whole(CommonTokens):
    """A bug: what the draft says of other tokens is kept in q, and not of those that are drawn."""

    def said(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> list[Proposal]:
        found = super().said(contexts, proposals)
        return [
            each if each.draft_probs is None else Proposal(
                each.tree, each.draw, _not_renormalised(each.draft_probs), each.num_draft_calls)
            for each in found
        ]  # fmt: skip


def _not_renormalised(q: Tensor) -> Tensor:
    return 0.7 * q


def test_a_q_that_is_not_renormalised_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = ARMS[0]
    monkeypatch.setattr(
        "specdec.proposer.draft_model.tokens_of",
        lambda model, depth: Whole(model, model.translation),  # pyright: ignore
    )
    found = distribution(arm.make(), arm.rule, NO_END)
    assert total_variation(found, text_distribution(TARGET, LENGTH, NO_END, PROMPT)) > 1e-3
