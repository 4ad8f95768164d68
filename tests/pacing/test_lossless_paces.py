"""Whatever a pace makes of the past, texts stay the verifier's; one that peeks is found out."""

from collections.abc import Callable, Sequence

import pytest

from specdec.core.protocols import Pace, Proposer, VerificationRule
from specdec.core.values import Context, Proposal
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.pacing.adaptive import Adaptive
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.tree.chain import Chain
from specdec.verification.block import Block
from specdec.verification.rejection import Rejection
from specdec.verification.traversal import Traversal
from tests.decoding import test_exact_loop as exact_loop
from tests.decoding.test_exact_loop import DRAFT, TARGET, drafting, forking
from tests.support import arms
from tests.support.arms import PROMPT
from tests.support.joint_distribution import assert_fits, assert_found
from tests.support.paces import (
    Scripted,
    by_the_text,
    peeking_at_the_draft,
    peeking_at_the_verdict,
)
from tests.support.toy import (
    ChoosingChain,
    Draw,
    TextDistribution,
    Tokens,
    table_lm,
    text_distribution,
    total_variation,
)

enumerate_streams = exact_loop.enumerate_streams  # the fixture
EXACT = 1e-12
LENGTH = 3
NUM_TEXTS = 1500
Enumerate = Callable[[BranchingStream], None]


def exactly(
    make: Callable[[], Proposer],
    pace: Callable[[], Pace],
    enumerate_streams: Enumerate,
    rule: VerificationRule | None = None,
) -> TextDistribution:
    """Return the distribution of the texts of a pace that starts anew with each of them."""

    def play(branching: BranchingStream) -> Tokens:
        enumerate_streams(branching)
        parts = table_lm(TARGET), make(), rule or Rejection()
        decoder = SpeculativeDecoder(*parts, stopping=Stopping(LENGTH), pace=pace())
        return decoder.decode([Request("a", PROMPT)])[0].output_ids

    return outcomes(play)


ARMS: dict[str, tuple[Callable[[], Proposer], VerificationRule | None]] = {
    "chain": (lambda: drafting(ChoosingChain(2)), None),
    "chain_block": (lambda: drafting(ChoosingChain(2)), Block()),
    "ngram": (lambda: NGram(2, max_ngram=2), None),
    "without_replacement": (lambda: forking(Draw.WITHOUT_REPLACEMENT), Traversal()),
}


@pytest.mark.parametrize("name", ARMS)
def test_depths_chosen_from_the_past_leave_the_text_alone(
    name: str, enumerate_streams: Enumerate
) -> None:
    make, rule = ARMS[name]
    found = exactly(make, lambda: Scripted(by_the_text), enumerate_streams, rule)
    bias = total_variation(found, text_distribution(TARGET, LENGTH, prompt=PROMPT))
    assert bias < EXACT, f"TV {bias:.3e}"


def test_the_controller_leaves_the_text_alone(enumerate_streams: Enumerate) -> None:
    """It sees what was accepted, and real seconds; its steps are others each time."""
    make, _ = ARMS["chain"]
    found = exactly(make, Adaptive, enumerate_streams)
    bias = total_variation(found, text_distribution(TARGET, LENGTH, prompt=PROMPT))
    assert bias < EXACT, f"TV {bias:.3e}"


def test_stopping_by_the_price_of_a_token_leaves_the_text_alone(
    enumerate_streams: Enumerate,
) -> None:
    """What the draft says of the next token is known before it is drawn."""
    make, rule = ARMS["chain_block"]
    dear = [float(DRAFT((*PROMPT, token)).max()) for token in range(3)]
    price = sorted(dear)[1]  # some tokens are followed by one more candidate, some are not
    found = exactly(make, lambda: Scripted(lambda *_: 2, price), enumerate_streams, rule)
    bias = total_variation(found, text_distribution(TARGET, LENGTH, prompt=PROMPT))
    assert bias < EXACT, f"TV {bias:.3e}"


class _CutByItsTokens(DraftModel):
    """Looks at a token that was drawn, and takes it back if it is no good."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [self._cut(each) for each in super().propose(contexts)]

    def _cut(self, proposal: Proposal) -> Proposal:
        ids = proposal.tree.token_ids
        if proposal.draft_probs is None or len(ids) < 2:
            return proposal
        q = proposal.draft_probs[0]
        return proposal if float(q[ids[1]]) >= float(q.max()) else proposal.pruned(0, frozenset())


def test_a_length_that_looks_at_its_own_tokens_is_found(enumerate_streams: Enumerate) -> None:
    found = exactly(
        lambda: _CutByItsTokens(table_lm(DRAFT), ChoosingChain(2)),
        lambda: Scripted(lambda *_: 2),
        enumerate_streams,
    )
    assert total_variation(found, text_distribution(TARGET, LENGTH, prompt=PROMPT)) > 1e-2


def decoded(pace: Pace, batch: int):
    model = DraftModel(table_lm(arms.DRAFT, arms.V), Chain(arms.GAMMA))
    parts = table_lm(arms.TARGET, arms.V), model, Rejection()
    decoder = SpeculativeDecoder(
        *parts, stopping=Stopping(arms.GAMMA + 3), batch=batch, seed=3, pace=pace
    )
    return decoder.decode(arms.requests(NUM_TEXTS))


EXPECTED = text_distribution(arms.TARGET, arms.GAMMA + 3, prompt=PROMPT)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.thorough), 7])
def test_texts_of_real_noise_have_the_joint_distribution(batch: int) -> None:
    """Rows leave and enter, and some of them rest while others draft."""
    assert_fits(decoded(Scripted(by_the_text), batch), EXPECTED, f"by the text, batch={batch}")
    assert_fits(decoded(Adaptive(), batch), EXPECTED, f"adaptive, batch={batch}")


@pytest.mark.parametrize("peek", [peeking_at_the_draft, peeking_at_the_verdict])
def test_a_pace_that_peeks_is_found(peek: Callable[[Context, int], int]) -> None:
    assert_found(decoded(Scripted(peek), 7), EXPECTED, peek.__name__)
