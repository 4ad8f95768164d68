"""Real decoding with real noise: joint distributions over several steps, by chi-square.

Exact enumeration (test_exact_loop.py) shows that the arithmetic is right if every decision has
noise of its own. Here that noise comes from `RandomStream`, keyed by (seed, request, step,
purpose): marginals of single tokens would miss most misuse of it, so the JOINT distribution of
whole texts is tested, each of them several steps long.

False alarms and power are those of joint_distribution.py; test_the_power_is_as_stated holds the
numbers.
The negative controls at the end must be found. All pairs of a rule and a tree are in
test_lossless_combinations.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.randomness import RandomStream, Stream
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Context, Proposal, Verdict
from specdec.decoding.stopping import Stopping
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.proposer.recorded import Recorded
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.arms import DRAFT, GAMMA, PROMPT, PROPOSERS, TARGET, V, decoder, requests
from tests.support.joint_distribution import (
    assert_fits,
    assert_found,
    detectable,
    fit,
    steps_per_text,
)
from tests.support.noise import rekeyed
from tests.support.toy import (
    NO_END,
    TextDistribution,
    memoryless,
    table_lm,
    text_distribution,
    warped,
)

NUM_TEXTS = 2000
NUM_WRONG_TEXTS = 1000  # enough for each of the negative controls
LENGTH = GAMMA + 3  # at least two steps, whatever is accepted

ARMS = ["none", "ngram", "recorded", "draft_model", "cascade"]  # of arms.PROPOSERS
SAMPLINGS = {
    "T=1": Sampling(),
    "T=0.7,top_p=0.9": Sampling(0.7, top_p=0.9),
    "T=0.8,top_k=2": Sampling(0.8, top_k=2),
}


# --- the decoder passes -------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ARMS)
def test_texts_have_the_verifiers_joint_distribution(name: str, sampling: str) -> None:
    _check(name, sampling, batch=7, num_texts=NUM_TEXTS)


@pytest.mark.parametrize("name", ARMS)
def test_texts_decoded_one_by_one_have_the_joint_distribution_too(name: str) -> None:
    _check(name, "T=1", batch=1, num_texts=NUM_TEXTS // 2)


def _check(name: str, sampling: str, batch: int, num_texts: int) -> None:
    warp = SAMPLINGS[sampling]
    speculative = decoder(
        PROPOSERS[name](), sampling=warp, stopping=Stopping(LENGTH), batch=batch, seed=1
    )
    traces = speculative.decode(requests(num_texts))
    distribution = text_distribution(warped(TARGET, warp), LENGTH, prompt=PROMPT)
    assert steps_per_text(traces) >= 2, "one step per text would not show reused noise"
    assert_fits(traces, distribution, f"{name} at {sampling}, batch={batch}")


def test_texts_that_end_have_the_joint_distribution() -> None:
    """Token 2 ends a text, wherever in a chain it was drafted."""
    ends = frozenset({2})
    speculative = decoder(
        PROPOSERS["draft_model"](), stopping=Stopping(LENGTH, ends), batch=7, seed=2
    )
    distribution = text_distribution(TARGET, LENGTH, ends, PROMPT)
    assert_fits(
        speculative.decode(requests(NUM_TEXTS)), distribution, "draft_model with an end token"
    )


def test_the_power_is_as_stated() -> None:
    """At T=1 pooling leaves 125 cells of 243, at T=0.8 with top_k=2 there are about 30."""
    assert detectable(NUM_TEXTS, 124) == pytest.approx(0.139, abs=0.001)
    assert detectable(NUM_TEXTS, 28) == pytest.approx(0.109, abs=0.001)
    assert detectable(NUM_WRONG_TEXTS, 88) == pytest.approx(0.185, abs=0.001)
    # Table 5.2 of verification_theory.md.
    assert detectable(13_000, 80) == pytest.approx(0.05, abs=0.002)


def test_the_test_itself_keeps_its_false_alarm_rate() -> None:
    """Texts drawn from the distribution itself: p-values must not crowd at the low end."""
    distribution = text_distribution(TARGET, LENGTH, prompt=PROMPT)
    texts, masses = list(distribution), list(distribution.values())
    p_values: list[float] = []
    for seed in range(200):
        drawn = RandomStream(seed, "texts")._random.choices(texts, masses, k=NUM_TEXTS)
        p_values.append(fit(drawn, distribution).p_value)
    assert min(p_values) > 1e-4
    assert 0.35 < sum(p_values) / len(p_values) < 0.65


# --- negative controls: each must be found ------------------------------------------------------


class _CorrectionFromP(Rejection):
    """Draws the correction from p instead of the residual."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        verdict = super().verify(proposal, verifier_probs, stream)
        if verdict.outcome is not Outcome.RECOVERED:
            return verdict
        return replace(verdict, next_token=stream.choose(verifier_probs[len(verdict.path)]))


class _MisrecordedDraft(DraftModel):
    """Draws at temperature 0.25 and records q as it is at temperature 1."""

    def __init__(self) -> None:
        super().__init__(table_lm(DRAFT, V), Chain(GAMMA), temperature=0.25)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [_with_flat_q(proposal) for proposal in super().propose(contexts)]


def _with_flat_q(proposal: Proposal) -> Proposal:
    if proposal.draft_probs is None:
        return proposal
    roots = proposal.draft_probs.pow(0.25)  # undoes T = 0.25
    return replace(proposal, draft_probs=roots / roots.sum(dim=-1, keepdim=True))


def _decode_wrongly(**wrong: Any) -> list[Trace]:
    usual: dict[str, Any] = {"stopping": Stopping(LENGTH), "batch": 7, "seed": 3}
    wrong.setdefault("proposer", PROPOSERS["draft_model"]())
    return decoder(**usual, **wrong).decode(requests(NUM_WRONG_TEXTS))


def _assert_found(traces: Sequence[Trace], bug: str) -> None:
    assert_found(traces, text_distribution(TARGET, LENGTH, prompt=PROMPT), bug)


def test_a_correction_from_p_is_found() -> None:
    """TV 0.20 and chi-square divergence 0.23, by enumeration: 600 texts have the power."""
    _assert_found(
        _decode_wrongly(rule=_CorrectionFromP(), allow_lossy=True), "a correction drawn from p"
    )


def test_q_recorded_at_another_temperature_is_found() -> None:
    """TV 0.22 and chi-square divergence 0.39, by enumeration: 400 texts have the power."""
    decoded = _decode_wrongly(proposer=_MisrecordedDraft(), allow_lossy=True)
    _assert_found(decoded, "q of another temperature")
    with pytest.raises(UserError, match="_MisrecordedDraft: its tokens are not drawn from"):
        _decode_wrongly(proposer=_MisrecordedDraft())


def test_rekeyed_streams_are_as_good_as_the_decoders_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patch of the next two tests is harmless in itself."""
    rekeyed(monkeypatch, lambda f, purpose: (f.request.request_id, len(f.steps), purpose, "new"))
    assert_fits(_decode_wrongly(), text_distribution(TARGET, LENGTH, prompt=PROMPT), "new keys")


@pytest.mark.parametrize("name", ["draft_model", "recorded", "none"])
def test_noise_used_again_in_the_next_step_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the step in the key every step draws the numbers of the first one."""
    rekeyed(monkeypatch, lambda flight, purpose: (flight.request.request_id, purpose))
    _assert_found(_decode_wrongly(proposer=PROPOSERS[name]()), f"{name}: noise used in every step")


def test_noise_shared_by_draft_and_verifier_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the purpose in the key the number that drew a token also decides on it."""
    rekeyed(monkeypatch, lambda flight, _: (flight.request.request_id, len(flight.steps)))
    _assert_found(_decode_wrongly(), "one number for drafting and for accepting")


# --- a recording made with the same noise -------------------------------------------------------


def _replayed(seed: int) -> tuple[list[Trace], TextDistribution]:
    """Decode with proposer=none at seed 1, then with proposer=recorded over its traces."""
    distribution = memoryless(0.5, 0.3, 0.2)
    stopping = Stopping(LENGTH)
    recorded = decoder(NoProposer(), distribution, stopping=stopping, batch=7, seed=1)
    names = requests(NUM_WRONG_TEXTS)
    texts: dict[str, Sequence[int]] = {t.prompt_id: t.output_ids for t in recorded.decode(names)}
    again = decoder(Recorded(texts, GAMMA), distribution, stopping=stopping, batch=7, seed=seed)
    return again.decode(names), text_distribution(distribution, LENGTH)


def test_a_recording_of_the_verifier_can_be_replayed_with_another_seed() -> None:
    traces, distribution = _replayed(seed=0)
    assert_fits(traces, distribution, "a replayed recording")


def test_a_recording_judged_by_its_own_noise_is_found() -> None:
    """Its token at step k was drawn from the very stream that judges later drafts."""
    traces, distribution = _replayed(seed=1)
    assert_found(traces, distribution, "a recording replayed with its own seed")


def test_cells_are_pooled_and_impossible_texts_counted() -> None:
    distribution = {(0,): 0.999, (1,): 0.001}
    assert fit([(0,)] * 999 + [(1,)], distribution).degrees == 0
    assert fit([(2,)] * 10, distribution).impossible == 10
    assert text_distribution(memoryless(0.5, 0.5, 0.0), 1, NO_END) == {(0,): 0.5, (1,): 0.5}
