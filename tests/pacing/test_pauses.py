"""A proposer that was not asked for a while goes on as if it had been there all along."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
import torch

import specdec as sd
from specdec.core.protocols import Pace
from specdec.core.trace import Trace
from specdec.core.values import Context, Proposal
from specdec.lm.hf import HFCausalLM
from specdec.pacing.fixed import Fixed
from tests.support.each_proposer import PATHS, PROPOSERS, Make
from tests.support.families import noisy_copy, tiny_model
from tests.support.paces import Scripted, in_turns
from tests.support.traced import without_cpp
from tests.support.uncompiled import without_compiler

VERIFIER = tiny_model("llama")
DRAFT = noisy_copy(VERIFIER, 0.02)
REQUESTS = [sd.Request(str(at), [3 + at, 9, 4][: 2 + at % 2]) for at in range(3)]
# What draws on its own past, so that a pause may change what comes next, though not the text.
OTHERS: Mapping[str, Make] = {
    "pool": lambda verifier, draft: sd.Pool(3),
    "suffix": lambda verifier, draft: sd.Suffix(3),
    "hybrid": lambda verifier, draft: sd.Hybrid(
        [sd.Pool(3), sd.DraftModel(draft, sd.Chain(3)), PROPOSERS["chained"](verifier, draft)]
    ),
    "merged": lambda verifier, draft: sd.Hybrid([sd.NGram(3), sd.Pool(3)], mode="merge"),
    "cascade": lambda verifier, draft: sd.Cascade(draft, sd.NGram(2), sd.Rejection(), sd.Chain(3)),
    "early_exit": lambda verifier, draft: sd.EarlyExit(verifier, sd.Chain(3), exit_layer=1),
    "layer_skip": lambda verifier, draft: sd.LayerSkip(verifier, sd.Sparse(PATHS), [1]),
}
RUNTIMES = [
    pytest.param(without_compiler, id="programs"),
    pytest.param(without_cpp, id="compiled", marks=pytest.mark.thorough),
]
Seen = dict[tuple[str, int], tuple[int, ...]]  # by request and length of its text: the candidates


def decoded(
    name: str, pace: Pace | None, batch: int, runtime: str = "eager"
) -> tuple[list[Trace], Seen]:
    """Decode greedily, and watch what is proposed where."""
    verifier, draft = (HFCausalLM(each, runtime=runtime) for each in (VERIFIER, DRAFT))
    proposer, seen = {**PROPOSERS, **OTHERS}[name](verifier, draft), Seen()
    propose = proposer.propose

    def watched(contexts: Sequence[Context]) -> list[Proposal]:
        found = propose(contexts)
        for context, each in zip(contexts, found, strict=True):
            # As deep as it can be used: neighbours with more budget get more.
            usable = each.pruned(context.max_depth, frozenset())
            seen[context.request_id, len(context.token_ids)] = usable.tree.token_ids
        return found

    object.__setattr__(proposer, "propose", watched)
    parts = verifier, proposer, sd.Rejection(), sd.Sampling(0), sd.Stopping(24)
    decoder = sd.SpeculativeDecoder(*parts, batch, pace=pace)
    return decoder.decode(REQUESTS), seen


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", sorted(set(PROPOSERS) - {"none"}))
def test_candidates_after_a_pause_are_those_without_one(name: str, batch: int) -> None:
    """Drafts catch up on the text, and heads on all the states that they have not seen."""
    plain, _ = decoded("none", None, batch)
    always, all_along = decoded(name, Fixed(), batch)
    paused, seen = decoded(name, Scripted(in_turns), batch)
    texts = [trace.output_ids for trace in plain]
    assert [trace.output_ids for trace in always] == texts
    assert [trace.output_ids for trace in paused] == texts
    common = seen.keys() & all_along.keys()
    assert len(common) >= 3
    assert {place: seen[place] for place in common} == {p: all_along[p] for p in common}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_texts_with_pauses_are_those_without_candidates(name: str, batch: int) -> None:
    plain, _ = decoded("none", None, batch)
    paused, seen = decoded(name, Scripted(in_turns), batch)
    assert [trace.output_ids for trace in paused] == [trace.output_ids for trace in plain]
    assert seen


@pytest.mark.parametrize("run_by", RUNTIMES)
@pytest.mark.parametrize("name", sorted(set(PROPOSERS) - {"none"}))
def test_programs_are_paced_as_the_models_are(
    name: str, run_by: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program drafts a chain in one go, of one depth, and reads what a pause left out."""
    plain, _ = decoded("none", None, 3)
    eagerly, seen = decoded(name, Scripted(wilfully), 3)
    run_by(monkeypatch)
    paced, said = decoded(name, Scripted(wilfully), 3, "compiled")
    assert [trace.output_ids for trace in paced] == [trace.output_ids for trace in plain]
    assert said == seen
    assert [[step.depth for step in trace.steps] for trace in paced] == [
        [step.depth for step in trace.steps] for trace in eagerly
    ]


def wilfully(context: Context, accepted: int) -> int:
    """Let depths from 0 to 3 follow each other."""
    return (len(context.token_ids) + accepted) % 4


@pytest.mark.parametrize("name", ["draft_model", "chained", "ngram"])
def test_the_controller_paces_programs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = decoded("none", None, 3)
    without_compiler(monkeypatch)
    adaptive, _ = decoded(name, sd.Adaptive(), 3, "compiled")
    assert [trace.output_ids for trace in adaptive] == [trace.output_ids for trace in plain]
    assert {step.depth > 0 for trace in adaptive for step in trace.steps} == {False, True}


def test_who_is_not_asked_drafts_nothing() -> None:
    traces, seen = decoded("draft_model", Scripted(in_turns), 1)
    for trace in traces:
        lengths = [1 + length for length in trace.contexts]
        for step, length in zip(trace.steps, lengths, strict=True):
            drafts = length % 3 == 0
            assert ((trace.prompt_id, length) in seen) == drafts
            assert drafts or (step.drafted, step.draft_calls) == (0, 0)


def test_depths_are_heeded() -> None:
    traces, _ = decoded("draft_tree", Scripted(lambda context, accepted: 2), 3)
    assert max(step.depth for trace in traces for step in trace.steps) == 2


def test_states_of_a_pause_are_shown_together() -> None:
    """Each committed position once, in order, up to the one before the last token."""
    verifier = HFCausalLM(VERIFIER)
    proposer, shown = PROPOSERS["chained"](verifier, HFCausalLM(DRAFT)), dict[str, list[int]]()
    propose = proposer.propose

    def watched(contexts: Sequence[Context]) -> list[Proposal]:
        for each in contexts:
            known = shown.setdefault(each.request_id, [])
            known.append(len(each.features["final"]))
            assert sum(known) == len(each.token_ids) - 1
        return propose(contexts)

    object.__setattr__(proposer, "propose", watched)
    parts = verifier, proposer, sd.Rejection(), sd.Sampling(0), sd.Stopping(24)
    with torch.inference_mode():
        sd.SpeculativeDecoder(*parts, 2, pace=Scripted(in_turns)).decode(REQUESTS)
    assert max(max(known) for known in shown.values()) >= 3


def test_what_is_no_pace_is_refused() -> None:
    with pytest.raises(sd.UserError, match="no pace, since it has no `open`"):
        decoded("ngram", cast(Any, sd.Chain(2)), 1)
    with pytest.raises(sd.UserError, match="loss=2"):
        sd.Adaptive(loss=2)
    with pytest.raises(sd.UserError, match="expected draft=NAME as well"):
        sd.Adaptive(costs_path="costs.json")
    with pytest.raises(sd.UserError, match="cannot be read"):
        sd.Adaptive(costs_path="no.json", draft="ngram")
