"""Decoding on a text, against decoding that happened to write it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import stdev

import pytest
import torch

from specdec.core.errors import Unfit
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Draw
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.metrics import Tally
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.medusa import Medusa
from specdec.proposer.ngram import NGram
from specdec.recording.hidden_states import States
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.draft_distributions import HeadDistributions, ModelDistributions
from specdec.replaying.expected_steps import tally
from specdec.replaying.redraft import jump, require_jumps
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.sparse import Sparse
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from tests.support.families import random_ids, tiny_model
from tests.support.reading import heads_of
from tests.support.running import Tiny
from tests.support.toy import RankedTree, Tokens, full_context, markov, mixture, table_lm

PROMPTS = [(0, 1, 2, 0, 1), (2,), (1, 1, 0)]
TARGET = markov(2, full_context(5, 1.5))
DRAFT = mixture(TARGET, full_context(6, 1.5), 0.5)
TREE = (-1, 0, 0, 1, 1, 2)
SUBMITTED = ("num_drafted", "num_branched")


def texts_of(traces: list[Trace], prompts: list[tuple[int, ...]], budget: int) -> list[Text]:
    return [
        Text(t.prompt_id, "", 0, prompt, t.output_ids, (), t.finish_reason, budget)
        for t, prompt in zip(traces, prompts, strict=True)
    ]


def counted(traces: list[Trace]) -> dict[str, list[float]]:
    """Everything but seconds, and what the stand-in cannot know of p."""
    columns = Tally.of(traces).columns
    left_out = ("seconds", "overlap", "bound", "expected_accepted")
    return {n: list(c) for n, c in columns.items() if not n.endswith(left_out)}


PROPOSERS: dict[str, Proposer] = {
    "ngram": NGram(3),
    "ranked tree": RankedTree(TREE, DRAFT),
    "sparse": DraftModel(table_lm(DRAFT), Sparse([[0, 0], [1]])),
    "dynamic": DraftModel(table_lm(DRAFT), Dynamic(5, 3, 2)),
}


@pytest.mark.parametrize("ends", [frozenset(), frozenset({2})], ids=["endless", "ends"])
@pytest.mark.parametrize("name", PROPOSERS)
def test_point_masses_are_counted_as_in_decoding(name: str, ends: frozenset[int]) -> None:
    """Step by step the same, at temperature 1: the text decides."""
    proposer, stopping = PROPOSERS[name], Stopping(12, ends)
    decoder = SpeculativeDecoder(
        table_lm(TARGET), proposer, Rejection(), Sampling(), stopping, batch=2
    )
    decoded = decoder.decode([Request(f"{n}", prompt) for n, prompt in enumerate(PROMPTS)])
    texts = texts_of(decoded, PROMPTS, 12)
    found = jump(texts, proposer, table_lm(TARGET), Sampling(), Stopping(end_ids=ends), batch=2)
    assert [t.output_ids for t in sorted(found, key=lambda t: t.prompt_id)] == [
        t.output_ids for t in decoded
    ]
    assert counted(found) == counted(decoded)


def test_a_model_is_replayed_with_its_draft(tiny: Tiny) -> None:
    verifier, draft = load(str(tiny.verifier)), load(str(tiny.draft))
    prompts = [tuple(verifier.encode(text)) for text in ("def add(", "print(add(1, 2))\nprint(")]
    proposer = DraftModel(draft, Dynamic(6, 3, 3))
    decoded = decoded_texts(verifier, proposer, prompts)
    texts = texts_of(decoded, prompts, 20)
    found = jump(texts, proposer, verifier, Sampling(0.8), Stopping.of(verifier))
    assert counted(found) == counted(decoded)


@pytest.mark.parametrize("stop", ["end tokens", "stop strings"])
@pytest.mark.parametrize("threshold", [0.0, 0.3], ids=["whole", "sure"])
def test_trees_of_heads_that_read_no_tokens_are_known_whole(threshold: float, stop: str) -> None:
    """Also beside the text: how many candidates end it, and where unsure heads stop."""
    verifier = HFCausalLM(tiny_model("llama"))
    heads = heads_of("medusa", verifier)
    tree = Sparse([[0, 0, 0], [0, 1], [1, 0, 1], [2]], threshold)
    prompts = [tuple(random_ids(5, seed)) for seed in range(6)]

    def decoded(stopping: Stopping) -> list[Trace]:
        proposer = Medusa(heads, verifier, tree)
        decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0.7), stopping)
        return decoder.decode([Request(f"{n}", prompt) for n, prompt in enumerate(prompts)])

    if stop == "end tokens":
        said = Counter(token for trace in decoded(Stopping(30)) for token in trace.output_ids)
        often = frozenset(token for token, _ in said.most_common(14)[4:])  # by the heads, too
        stopping = Stopping(30, often)
    else:  # some within a token, some of up to three
        strings = ("33", "404", "9")
        stopping = Stopping(30, stop_strings=strings, show=lambda ids: "".join(map(str, ids)))
    texts = texts_of(decoded(stopping), prompts, 30)
    jumped = jump(texts, Medusa(heads, verifier, tree), verifier, Sampling(0.7), stopping)
    steps = [step for trace in jumped for step in trace.steps]
    assert len({step.drafted for step in steps}) > 2, "all trees are whole: the test is blind"
    arm = ClosedArm(tree, Rejection())
    closed = replay(
        [replace(text, log_p=(0.0,) * len(text.output_ids)) for text in texts],
        HeadDistributions(heads, verifier),
        {"": arm},
        Sampling(0.7),
        verifier,
        verifier.vocab_size,
        stopping=stopping,
    )
    found, expected = tally(closed[""], arm.num_drafted).columns, counted(jumped)
    for name in ("num_steps", *SUBMITTED, "num_drafts", "at_risk.2", "at_risk.3"):
        assert found[name].tolist() == pytest.approx(expected[name], abs=1e-9), name


def decoded_texts(
    verifier: HFCausalLM, proposer: Proposer, prompts: list[tuple[int, ...]]
) -> list[Trace]:
    decoder = SpeculativeDecoder(
        verifier, proposer, Rejection(), Sampling(0.8), Stopping(20, verifier.end_ids)
    )
    return decoder.decode([Request(f"{n}", prompt) for n, prompt in enumerate(prompts)])


def test_texts_that_a_stop_string_ended_are_not_continued() -> None:
    texts = [Text("a", "", 0, (0, 1), (2, 0, 1), (), "stop", 50)]
    (trace,) = jump(texts, NGram(2), table_lm(TARGET), Sampling(), Stopping())
    assert trace.output_ids == (2, 0, 1)
    assert trace.finish_reason == "stop"


def test_a_stop_string_within_candidates_is_counted_as_in_decoding() -> None:
    """What is behind it could never be emitted: it is not submitted, and nothing of it counts."""

    def counting(tokens: Tokens) -> torch.Tensor:
        return torch.eye(3, dtype=torch.float64)[(tokens[-1] + 1) % 3]

    stopping = Stopping(12, stop_strings=("12",), decode=lambda ids: "".join(map(str, ids)))
    proposer, prompt = NGram(5), (0, 1, 2, 0, 1, 2, 0)
    decoder = SpeculativeDecoder(
        table_lm(counting), proposer, Rejection(), Sampling(), stopping, batch=2
    )
    decoded = decoder.decode([Request("0", prompt)])
    assert decoded[0].finish_reason == "stop"
    assert decoded[0].steps[-1].drafted == decoded[0].steps[-1].accepted > 0
    texts = texts_of(decoded, [prompt], 12)
    found = jump(texts, proposer, table_lm(counting), Sampling(), stopping)
    assert counted(found) == counted(decoded)


def test_candidates_that_match_owe_nothing_to_the_noise_that_wrote_the_text() -> None:
    """Rejection lets candidates into the text: with its seed they would be found there again."""
    proposer, prompts = DraftModel(table_lm(DRAFT), Chain(3)), [(n % 3,) for n in range(40)]
    decoder = SpeculativeDecoder(
        table_lm(TARGET), proposer, Rejection(), Sampling(), Stopping(12), batch=40, seed=3
    )
    decoded = decoder.decode([Request(f"{n}", prompt) for n, prompt in enumerate(prompts)])
    texts = texts_of(decoded, prompts, 12)

    def num_steps(seed: int) -> int:
        found = jump(texts, proposer, table_lm(TARGET), Sampling(), Stopping(), 40, seed)
        return sum(len(trace.steps) for trace in found)

    without_log_p = [
        replace(text, log_p=(0.0,) * 12) for text in texts
    ]  # p of the text is not asked for
    closed = replay(
        without_log_p,
        ModelDistributions(table_lm(DRAFT)),
        {"": ClosedArm(Chain(3), Match())},
        Sampling(),
        None,
        3,
    )
    mean = tally(closed[""]).total("num_steps")
    spread = stdev(num_steps(seed) for seed in range(4, 12))
    assert sum(len(trace.steps) for trace in decoded) < mean - 6 * spread
    assert abs(num_steps(3) - mean) < 4 * spread


def test_hidden_states_are_read_once_for_all_proposers(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = load(str(tiny.verifier))
    texts = [Text(f"{n}", "", 0, (5, 6), (7, 8, 9), (), "length", 3) for n in range(5)]
    states = States(verifier, batch=3)
    for _ in range(2):
        found = [states.of(text, ("final",), texts[row:]) for row, text in enumerate(texts)]
        assert [each["final"].shape[0] for each in found] == [4] * 5
        # All is there by now.
        monkeypatch.setattr(verifier, "prefill", None)


@pytest.mark.parametrize("draw", [Draw.SINGLE, Draw.IID, Draw.FILTERED])
def test_what_chance_decides_is_refused(draw: Draw) -> None:
    with pytest.raises(Unfit, match="verification=rejection"):
        require_jumps(Rejection(), draw)
    require_jumps(Match(), draw)
    require_jumps(Rejection(), Draw.DETERMINISTIC)
