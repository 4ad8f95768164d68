"""Decoding that counts experts: what steps say, and that nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specdec.core.errors import UserError
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Step, Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.lm.routing import Routing
from specdec.metrics import Tally, summarize
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.lm.test_greedy_equality import NO_END, generated
from tests.support.arms import TARGET
from tests.support.families import noisy_copy, random_ids, tiny_model
from tests.support.toy import table_lm

E, K, LAYERS = 8, 2, 2
PROMPTS = [random_ids(number, seed=number) for number in (3, 9, 5, 14)]
STOP = Stopping(12, NO_END)
PATHS = [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]]
Routes = tuple[tuple[tuple[int, ...], ...], ...]


@cache
def model() -> PreTrainedModel:
    return tiny_model("mixtral", num_local_experts=E)


def proposer(name: str) -> Proposer:
    draft = HFCausalLM(noisy_copy(model()))
    return {
        "none": NoProposer,
        "ngram": lambda: NGram(3),
        "chain": lambda: DraftModel(draft, Chain(3)),
        "tree": lambda: DraftModel(draft, Sparse(PATHS)),
        "sampled": lambda: DraftModel(draft, Sampled([2, 2], "without_replacement")),
    }[name]()


def decode(
    name: str, batch: int, temperature: float, counting: bool, kept: Sequence[str] = ("0", "1")
) -> list[Trace]:
    sampling = Sampling(temperature)
    parts = HFCausalLM(model()), proposer(name), Rejection(), sampling, STOP, batch
    decoder = SpeculativeDecoder(*parts, experts=counting)
    requests = [
        Request(str(number), prompt, keep_candidates=str(number) in kept)
        for number, prompt in enumerate(PROMPTS)
    ]
    return decoder.decode(requests)


def untimed(trace: Trace) -> Trace:
    """Drop what counting adds, and seconds."""
    clean: dict[str, Any] = {"experts": (), "forward_tokens": None, "routes": ()}
    clean |= dict.fromkeys(("propose_seconds", "verify_seconds", "other_seconds"), 0.0)
    return replace(
        trace, prefill_seconds=0.0, steps=tuple(replace(step, **clean) for step in trace.steps)
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["none", "ngram", "chain", "tree"])
def test_texts_at_temperature_0_are_those_of_generate(name: str, batch: int) -> None:
    for prompt, trace in zip(PROMPTS, decode(name, batch, 0.0, counting=True), strict=True):
        assert trace.output_ids == generated(model(), prompt, NO_END)[: len(trace.output_ids)]
        assert len(trace.output_ids) == 12


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["ngram", "chain", "sampled"])
def test_counting_changes_nothing_else(name: str, batch: int) -> None:
    """At temperature 1, where the noise is keyed: every token, verdict and count is the same."""
    plain, counted = (decode(name, batch, 1.0, counting) for counting in (False, True))
    assert [untimed(trace) for trace in counted] == [untimed(trace) for trace in plain]
    assert all(step.experts == () and step.routes == () for t in plain for step in t.steps)
    assert all(len(step.experts) == LAYERS for trace in counted for step in trace.steps)


def routes_of_text(text: Sequence[int]) -> Routes:
    """Return the experts of all tokens of a text, read at once: [T][L][K]."""
    found = Routing(HFCausalLM(model())).forward([0], torch.tensor([list(text)])).experts
    assert found is not None
    taken: list[list[list[int]]] = found[0].sort(dim=-1).values.tolist()
    return tuple(tuple(map(tuple, token)) for token in taken)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["none", "chain", "tree"])
def test_routes_are_those_of_the_text_as_it_is_read(name: str, batch: int) -> None:
    """Root by root and token by token, whatever tree and batch they were read in."""
    for prompt, trace in zip(PROMPTS, decode(name, batch, 0.0, counting=True), strict=True):
        truth = routes_of_text([*prompt, *trace.output_ids])
        place = len(prompt) - 1
        for step in trace.steps:
            if trace.prompt_id in ("0", "1"):
                assert step.routes == truth[place : place + step.accepted + 1]
            else:
                assert step.routes == (), "only where candidates are kept"
            place += step.emitted


def touched(routes: Sequence[Sequence[Sequence[int]]]) -> tuple[int, ...]:
    return tuple(len({each for token in routes for each in token[n]}) for n in range(LAYERS))


def test_steps_count_the_experts_of_all_their_candidates() -> None:
    """One request and a chain: the candidates are the text that was kept, path by path."""
    for number, (prompt, trace) in enumerate(
        zip(PROMPTS, decode("chain", 1, 0.0, True, kept="0123"), strict=True)
    ):
        text = [*prompt]
        for step, output in zip(trace.steps, outputs(trace), strict=True):
            chain = [token for _, token in step.candidates]
            expected = routes_of_text([*text, *chain])[len(text) - 1 :]
            assert step.forward_tokens == step.drafted + 1 == len(expected)
            assert step.experts == touched(expected), f"prompt {number}"
            text += output


def outputs(trace: Trace) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    start = 0
    for step in trace.steps:
        found.append(trace.output_ids[start : start + step.emitted])
        start += step.emitted
    return found


def test_requests_in_flight_share_a_forward_and_padding_is_no_cell() -> None:
    """Of a batch all steps say the same; the tokens are those of all trees, without padding."""
    prompts = [[5, 6, 7, 5, 6], random_ids(9, seed=2), [9, 9, 4, 9]]
    requests = [Request(str(n), ids, keep_candidates=True) for n, ids in enumerate(prompts)]
    parts = HFCausalLM(model()), NGram(3), Rejection(), Sampling(0.0), STOP, 3
    traces = SpeculativeDecoder(*parts, experts=True).decode(requests)
    first = [trace.steps[0] for trace in traces]
    assert [step.drafted for step in first] == [3, 0, 2], "unlike trees, so that some are padded"
    union: list[Any] = []
    for prompt, step in zip(prompts, first, strict=True):
        chain = [token for _, token in step.candidates]
        union += routes_of_text([*prompt, *chain])[len(prompt) - 1 :]
    for step in first:
        assert step.forward_tokens == len(union) == 8
        assert step.experts == touched(union)


def test_traces_read_what_they_wrote_and_older_ones() -> None:
    trace = decode("tree", 1, 0.0, counting=True)[0]
    row = trace.to_row()
    assert Trace.from_row(row) == trace
    for step in row["steps"]:
        for name in ("experts", "forward_tokens", "routes"):
            del step[name]
    older = Trace.from_row(row)
    assert all(step.experts == () and step.forward_tokens is None for step in older.steps)
    assert older.to_row() == row, "what is not counted is not written"


def test_the_summary_has_means_over_steps_and_by_tokens() -> None:
    traces = decode("tree", 1, 0.0, counting=True)
    steps: list[Step] = [step for trace in traces for step in trace.steps]
    summary = summarize(traces)
    means = [sum(step.experts) / LAYERS for step in steps]
    assert summary["experts_touched"]["value"] == pytest.approx(sum(means) / len(means))
    for number, row in summary["experts_at_tokens"].items():
        of_size = [m for m, s in zip(means, steps, strict=True) if s.forward_tokens == int(number)]
        assert row["value"] == pytest.approx(sum(of_size) / len(of_size))
    assert list(map(int, summary["experts_at_tokens"])) == sorted({s.drafted + 1 for s in steps})
    again = Tally.from_rows(Tally.of(traces).to_rows())
    assert summarize(again)["experts_at_tokens"] == summary["experts_at_tokens"]


def test_without_counting_the_summary_has_none() -> None:
    summary = summarize(decode("tree", 1, 0.0, counting=False))
    assert not {"experts_touched", "experts_at_tokens"} & set(summary)


def test_a_model_without_experts_is_refused() -> None:
    dense = HFCausalLM(tiny_model("llama"))
    with pytest.raises(UserError, match=r"^experts=True: llama has no experts to count"):
        SpeculativeDecoder(dense, NoProposer(), Rejection(), experts=True)
    with pytest.raises(UserError, match=r"^experts=True: TableLM is no model of transformers"):
        SpeculativeDecoder(table_lm(TARGET, 3), NoProposer(), Rejection(), experts=True)
