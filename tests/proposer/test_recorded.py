"""Replaying a recorded text: right tokens where it should, wrong ones as often as it says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest, chisquare

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Draw
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.proposer.none import NoProposer
from specdec.proposer.recorded import Recorded
from specdec.verification.rejection import Rejection
from tests.support.asking import context, draft_ids, proposals_of
from tests.support.toy import full_context, table_lm

FALSE_ALARM = 1e-6  # of each statistical test here; the seeds are fixed, so none is flaky
TEXT = [11, 12, 13, 14, 15]
ID = "request-0"


# --- what is proposed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_emitted", "budget", "candidate"),
    [
        (0, 100, [11, 12, 13]),
        (1, 100, [12, 13, 14]),
        (3, 100, [14, 15]),
        (5, 100, []),
        (9, 100, []),  # a text that got longer than the recorded one
        (0, 3, [11, 12]),
        (0, 1, []),
    ],
)
def test_the_next_tokens_of_the_recording(
    num_emitted: int, budget: int, candidate: list[int]
) -> None:
    """What was emitted may differ from the recording: its place is what counts."""
    one = context([1, 2, 3, *[99] * num_emitted], budget, num_prompt_tokens=3)
    (proposal,) = proposals_of(Recorded({ID: TEXT}, gamma=3), one)
    assert draft_ids(proposal) == candidate
    assert (proposal.draw, proposal.draft_probs) == (Draw.DETERMINISTIC, None)


def test_each_request_has_its_own_recording() -> None:
    texts = {"request-0": [1, 2], "request-1": [3, 4]}
    proposals = proposals_of(Recorded(texts, 2), context([9], row=1), context([9], row=0))
    assert [draft_ids(proposal) for proposal in proposals] == [[3, 4], [1, 2]]


def test_a_request_that_was_not_recorded_is_named() -> None:
    with pytest.raises(UserError, match="nothing recorded for prompt request-3"):
        proposals_of(Recorded({ID: TEXT}, 2), context([1], row=0), context([1], row=3))


def test_accuracy_zero_is_never_right_and_wrong_tokens_are_uniform() -> None:
    """Chi-square over the 9 other tokens of a vocabulary of 10; false alarms: FALSE_ALARM."""
    wrong: Counter[int] = Counter()
    recorded = Recorded({ID: [4] * 5}, gamma=5, accuracy=0.0)
    for key in range(1500):
        (proposal,) = proposals_of(recorded, context([1], key=key), vocab_size=10)
        wrong.update(draft_ids(proposal))
    assert wrong.total() == 7500
    assert set(wrong) == set(range(10)) - {4}, "the right token, or one beyond the vocabulary"
    p_value = chisquare(list(wrong.values())).pvalue
    assert p_value > FALSE_ALARM, f"p={p_value:.1e}: wrong tokens are not uniform"


def test_errors_depend_on_the_draft_stream_alone() -> None:
    recorded = Recorded({ID: TEXT * 4}, gamma=20, accuracy=0.5)
    (first,) = proposals_of(recorded, context([1], key="a"))
    (again,) = proposals_of(recorded, context([1], key="a"))
    (other,) = proposals_of(recorded, context([1], key="b"))
    assert first == again
    assert first != other
    one = context([1], key="a")
    proposals_of(recorded, one)
    untouched = context([1], key="a").verify_stream.uniform()
    assert one.verify_stream.uniform() == untouched, "errors may not use the verifier's noise"


# --- accuracy is the acceptance rate ------------------------------------------------------------

VOCAB = 20
DISTRIBUTION = full_context(seed=5, vocab_size=VOCAB)
REQUESTS = [Request(f"p{n}", [n % VOCAB, n // VOCAB]) for n in range(30)]


def decoded(proposer: Proposer, seed: int = 0) -> list[Trace]:
    """Decode greedily: the verifier is a table, so its text is a function of the prompt."""
    decoder = SpeculativeDecoder(
        table_lm(DISTRIBUTION, VOCAB),
        proposer,
        Rejection(),
        Sampling(0),
        Stopping(60),
        batch=8,
        seed=seed,
    )
    return decoder.decode(REQUESTS)


@pytest.fixture(scope="module")
def texts() -> dict[str, tuple[int, ...]]:
    return {trace.prompt_id: trace.output_ids for trace in decoded(NoProposer())}


@pytest.mark.parametrize("accuracy", [0.3, 0.7, 0.95])
def test_accuracy_is_the_acceptance_of_each_token_that_is_tested(
    texts: dict[str, tuple[int, ...]], accuracy: float
) -> None:
    """Binomial test over at least 1300 tested tokens; false alarms: FALSE_ALARM."""
    traces = decoded(Recorded(texts, gamma=4, accuracy=accuracy))
    assert {t.prompt_id: t.output_ids for t in traces} == texts, "the text is not the verifier's"
    steps = [step for trace in traces for step in trace.steps]
    accepted = sum(step.accepted for step in steps)
    tested = accepted + sum(step.outcome is Outcome.RECOVERED for step in steps)
    assert tested > 1300
    p_value = binomtest(accepted, tested, accuracy).pvalue
    assert p_value > FALSE_ALARM, (
        f"p={p_value:.1e}: {accepted} of {tested} tested tokens were accepted at {accuracy}"
    )


def test_accuracy_does_not_depend_on_the_depth(texts: dict[str, tuple[int, ...]]) -> None:
    """Each token is right by itself: P(A >= d | A >= d - 1) is the accuracy at every d."""
    steps = [step for trace in decoded(Recorded(texts, 4, 0.8), seed=1) for step in trace.steps]
    for depth in range(1, 5):
        at_risk = [s for s in steps if s.depth >= depth and s.accepted >= depth - 1]
        hits = sum(step.accepted >= depth for step in at_risk)
        p_value = binomtest(hits, len(at_risk), 0.8).pvalue
        assert p_value > FALSE_ALARM, f"p={p_value:.1e}: {hits} of {len(at_risk)} at depth {depth}"


def test_full_accuracy_is_full_acceptance(texts: dict[str, tuple[int, ...]]) -> None:
    for trace in decoded(Recorded(texts, gamma=4)):
        assert [step.emitted for step in trace.steps] == [5] * 12


# --- run directories ----------------------------------------------------------------------------


def test_a_run_directory_gives_the_texts_of_all_turns(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "a", "turn": 0, "output_ids": [1, 2], "steps": []},
        {"prompt_id": "a", "turn": 1, "output_ids": [3]},
        {"prompt_id": "b", "turn": 0, "output_ids": []},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "traces.jsonl").write_text(lines + "\n", encoding="utf-8")
    recorded = Recorded.from_run(str(tmp_path), gamma=3, accuracy=0.5)
    assert recorded._texts == {"a": [1, 2], "a#1": [3], "b": []}
    assert recorded.max_depth == 3


@pytest.mark.parametrize("path", [None, "", "nowhere"])
def test_a_run_that_is_not_there_is_named(tmp_path: Path, path: str | None) -> None:
    given = str(tmp_path / path) if path else path
    with pytest.raises(UserError) as caught:
        Recorded.from_run(given, gamma=3)
    assert str(caught.value).startswith(f"path={given!r}: ")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("\n{\n")
    with pytest.raises(UserError, match=r"traces\.jsonl:2: not valid JSON"):
        Recorded.from_run(str(tmp_path), gamma=3)


def test_a_row_that_is_no_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text('{"prompt_id": "a"}\n')
    with pytest.raises(UserError, match=r"traces\.jsonl"):
        Recorded.from_run(str(tmp_path), gamma=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "gamma=0: expected an integer >= 1"),
        ({"gamma": 2, "accuracy": 1.1}, "accuracy=1.1: expected a number >= 0 and <= 1"),
        ({"gamma": 2, "accuracy": -1}, "accuracy=-1: expected a number >= 0 and <= 1"),
        ({"gamma": 2, "accuracy": "1"}, "accuracy='1': expected a number >= 0 and <= 1"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Recorded({}, **options)
    assert str(caught.value) == message
