"""Known bugs of drafting and of the loop, planted in the product: the enumerated loop finds each.

Bugs of the rules are planted in tests/verification/test_mutations.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from torch import Tensor

from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.decoding.stopping import Stopping
from specdec.proposer.draft_model import DraftModel
from specdec.tree.chain import Chain
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import Candidates
from tests.decoding import test_exact_loop as exact_loop
from tests.decoding.test_exact_loop import CELLS, DRAFT, TARGET, loop_distribution
from tests.support.arms import PROMPT
from tests.support.mutating import Plant, replaced, rewritten
from tests.support.toy import (
    ChoosingChain,
    gridded,
    table_lm,
    text_distribution,
    total_variation,
    warped,
)

COLD = Sampling(temperature=0.5)
DETECTED = 1e-3


def _argmax(policy: object, draft_probs: Tensor, width: int, streams: object) -> Candidates:
    return Candidates(draft_probs.argmax(dim=-1, keepdim=True))


def _renormalised(policy: object, draft_probs: Tensor, *passing: float) -> Tensor:
    passed = draft_probs * (draft_probs >= 0.5)
    return passed / passed.sum(dim=-1, keepdim=True).clamp(min=0.1)


@dataclass(frozen=True)
class Mutation:
    """A bug, and a proposer with which it shows."""

    name: str
    plant: Plant
    make: Callable[[], Proposer]
    tv: float
    sampling: Sampling = field(default_factory=Sampling)
    length: int = 2

    def __str__(self) -> str:
        return self.name


def _sampled() -> Proposer:
    return DraftModel(table_lm(DRAFT), ChoosingChain(2))


def _on_grid() -> Proposer:
    """A draft that the product's own chain draws from; see `EnumeratedStream`."""
    return DraftModel(table_lm(gridded(13, CELLS)), Chain(2))


def _filtered() -> Proposer:
    return DraftModel(table_lm(gridded(13, CELLS)), Filtered(2, min_prob=0.5))


MUTATIONS = [
    Mutation(
        "bonus-row-not-warped",
        rewritten(
            "specdec.decoding.decoder.SpeculativeDecoder._verifier_probs",
            "self.sampling.warp(logits)",
            "torch.cat([self.sampling.warp(logits[:, :-1]), logits[:, -1:].softmax(-1)], dim=1)",
        ),
        _sampled,
        0.0721,
        COLD,
    ),
    Mutation(
        "verifier-not-warped",
        rewritten(
            "specdec.decoding.decoder.SpeculativeDecoder._verifier_probs",
            "self.sampling.warp(logits)",
            "logits.softmax(-1)",
        ),
        _sampled,
        0.218,
        COLD,
    ),
    Mutation(
        "q-of-another-temperature-recorded",
        rewritten(
            "specdec.proposer.draft_model.grow",
            "draft_probs if sampled else None",
            "logits.softmax(-1) if sampled else None",
        ),
        _sampled,
        0.0122,
        COLD,
    ),
    Mutation(
        "argmax-drafts-with-soft-q",
        replaced("specdec.tree.sampled.SampledTree.candidates", _argmax),
        _on_grid,
        0.2293,
    ),
    Mutation(
        "withheld-token-forgotten",
        rewritten("specdec.proposer.levels._proposal", "WITHHELD in on_host.states", "False"),
        _filtered,
        0.172,
    ),
    Mutation(
        "filtered-q-renormalised",
        replaced("specdec.tree.filtered.Filtered.passed", _renormalised),
        _filtered,
        0.172,
    ),
    Mutation(
        "rows-of-q-shifted-in-a-fixed-tree",
        rewritten(
            "specdec.proposer.levels.Levels._static_proposals",
            "Proposal(tree, draw, probs, calls)",
            "Proposal(tree, draw, probs.roll(1, 0), calls)",
        ),
        _on_grid,
        0.2362,
        length=3,
    ),
    Mutation(
        "rows-of-q-shifted",
        rewritten(
            "specdec.proposer.levels._proposal",
            "Proposal(tree, draw, draft_probs, calls,",
            "Proposal(tree, draw, draft_probs.roll(1, 0), calls,",
        ),
        _sampled,
        0.2808,
        length=3,
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_bug_of_drafting_or_of_the_loop_is_found(
    mutation: Mutation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The distribution of the text is right, then the bug is planted and it is not any more."""
    expected = text_distribution(warped(TARGET, mutation.sampling), mutation.length, prompt=PROMPT)

    def bias() -> float:
        found = loop_distribution(
            mutation.make(),
            Stopping(mutation.length),
            sampling=mutation.sampling,
        )
        return total_variation(found, expected)

    right = bias()
    assert right < exact_loop.EXACT, f"TV {right:.1e} before anything is planted"
    mutation.plant(monkeypatch)
    found = bias()
    assert found > DETECTED, f"TV {found:.1e}: the enumeration of the loop is blind to {mutation}"
    assert found == pytest.approx(mutation.tv, abs=5e-4), f"TV {found:.4f}: state it in the table"
