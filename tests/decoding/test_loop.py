"""Invariants of the loop: what is computed, counted, cut, and kept apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import Forward, Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Step, Trace
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draws, Layer, Proposal, Verdict, each_draw
from specdec.decoding.decoder import Clock, SpeculativeDecoder
from specdec.decoding.request import Flight, Request
from specdec.decoding.stopping import Stopping
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.proposer.recorded import Recorded
from specdec.testing.table_lm import TableLM
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.arms import DRAFT, GAMMA, PROMPT, PROPOSERS, TARGET, TREE, V, decoder, requests
from tests.support.toy import Conditional, RankedTree, Tokens, full_context, memoryless, table_lm

GREEDY = Sampling(temperature=0.0)
ENDS = frozenset({2})
LETTERS = "abc"
FORKING = {"ranked_tree", "suffix_tree", "retrieval", "merged"}
CHAINS = [name for name in PROPOSERS if name not in FORKING]
every_proposer = pytest.mark.parametrize("name", PROPOSERS)
every_batch = pytest.mark.parametrize("batch", [1, 3])


def spell(token_ids: Sequence[int]) -> str:
    return "".join(LETTERS[token] for token in token_ids)


class CountingLM(TableLM):
    """A table that writes down what it was asked for."""

    def __init__(self, distribution: Conditional = TARGET, max_length: int = 1 << 20):
        super().__init__(lambda tokens: distribution(tokens).log(), V, max_length)
        self.num_prefill_cells = 0
        self.num_cells = 0
        self.num_rows_per_call: list[int] = []
        self.last_position = 0

    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        self.num_prefill_cells += sum(map(len, token_ids))
        return super().prefill(rows, token_ids, layers)

    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        self.num_cells += token_ids.numel()
        self.num_rows_per_call.append(len(rows))
        forward = super().forward(rows, token_ids, positions, attend, layers)
        for row in rows:
            self.last_position = max(self.last_position, *(p for p, _ in self._cells[row]))
        return forward

    def tokens(self, row: int) -> list[int]:
        return [token for _, token in self._cells[row]]


@dataclass
class Watched:
    """A proposer whose calls are checked against the caches."""

    proposer: Proposer
    verifier: CountingLM
    draft: CountingLM | None = None

    @property
    def draw(self) -> Draws:
        return self.proposer.draw

    @property
    def max_depth(self) -> int:
        return self.proposer.max_depth

    @property
    def layers(self) -> Sequence[Layer]:
        return self.proposer.layers

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        self.proposer.open(num_rows, capacity, vocab_size)

    def reset(self, contexts: Sequence[Context]) -> None:
        self.proposer.reset(contexts)
        self._check(contexts)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        self._check(contexts)
        proposals = self.proposer.propose(contexts)
        for context, proposal in zip(contexts, proposals, strict=True):
            assert proposal.tree.token_ids[0] == context.token_ids[-1], (
                "the root of a tree must be the last committed token"
            )
            assert proposal.draw in each_draw(self.draw) or proposal.tree.num_draft_tokens == 0
            assert max(proposal.tree.depths) <= self.max_depth, "deeper than it says it goes"
        return proposals

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        self.proposer.update(contexts, verdicts)
        self._check(contexts)

    def _check(self, contexts: Sequence[Context]) -> None:
        for context in contexts:
            text = list(context.token_ids)
            finished = bool(ENDS.intersection(text[context.num_prompt_tokens :]))
            cached = self.verifier.tokens(context.row)
            if not finished:
                assert cached == text[:-1], (
                    f"the verifier has cached {cached}, but the text is {text}: cells must be the"
                    " committed tokens but the last"
                )
                assert context.budget >= 1
            drafted = self.draft.tokens(context.row) if self.draft else []
            assert drafted == text[: len(drafted)], (
                f"the draft model has cached {drafted}, which does not begin the text {text}"
            )


def decode(name: str, num: int = 1, **arm: Any) -> list[Trace]:
    """Decode the usual requests with a proposer of PROPOSERS."""
    return decoder(PROPOSERS[name](), **arm).decode(requests(num))


def outcome(trace: Trace) -> tuple[object, ...]:
    """Everything about a trace but its seconds."""
    steps = [replace(s, propose_seconds=0, verify_seconds=0, other_seconds=0) for s in trace.steps]
    return (trace.prompt_id, trace.output_ids, trace.finish_reason, trace.output_text, steps)


def all_steps(traces: Sequence[Trace]) -> Iterator[Step]:
    for trace in traces:
        yield from trace.steps


# --- what is computed ---------------------------------------------------------------------------


@every_proposer
def test_a_step_is_one_forward_of_the_verifier(name: str) -> None:
    verifier = CountingLM()
    (trace,) = decode(name, verifier=verifier, stopping=Stopping(40))
    assert verifier.num_calls == len(trace.steps), "prefill is no step, and a step is one forward"
    assert verifier.num_prefill_cells == len(PROMPT) - 1


@every_proposer
def test_no_cell_is_computed_twice(name: str) -> None:
    """The prompt but its last token, then for each step the root and the draft tokens."""
    verifier = CountingLM()
    (trace,) = decode(name, verifier=verifier, stopping=Stopping(40))
    computed = verifier.num_prefill_cells + verifier.num_cells
    expected = len(PROMPT) - 1 + sum(step.drafted + 1 for step in trace.steps)
    assert computed == expected, f"{computed} cells computed where {expected} were needed"


@pytest.mark.parametrize("distribution", [TARGET, DRAFT], ids=["all-accepted", "some-rejected"])
def test_a_draft_model_reads_no_token_twice(distribution: Conditional) -> None:
    """A chain of g tokens costs g cells: the last committed token, and g - 1 of its own.

    One more is needed where the chain before was accepted in full: its last token was never read.
    """
    draft = CountingLM(distribution)
    (trace,) = decoder(DraftModel(draft, Chain(GAMMA)), stopping=Stopping(40)).decode(requests(1))
    drafting = [step for step in trace.steps if step.drafted]
    in_full = [step.accepted == step.drafted for step in drafting]
    assert all(in_full) == (distribution is TARGET)
    assert draft.num_prefill_cells == len(PROMPT) - 1
    expected = sum(step.drafted for step in drafting) + sum(in_full[:-1])
    assert draft.num_cells == expected, f"{draft.num_cells} cells where {expected} were needed"


@every_batch
def test_a_draft_model_drafts_as_long_as_its_own_context_lasts(batch: int) -> None:
    """A draft model may have a shorter context than the verifier; the text goes on without it."""
    draft = CountingLM(DRAFT, max_length=len(PROMPT) + 6)
    proposer = DraftModel(draft, Chain(GAMMA))
    for trace in decoder(proposer, stopping=Stopping(12), batch=batch).decode(requests(8)):
        num_tokens = len(PROMPT)
        for step in trace.steps:
            fits = num_tokens + GAMMA <= draft.max_length
            assert (step.drafted > 0) == fits, f"{num_tokens} tokens, {step.drafted} drafted"
            num_tokens += step.emitted
        assert len(trace.output_ids) == 12
    assert draft.last_position < draft.max_length, "a position behind the draft model's context"


@every_batch
@pytest.mark.parametrize("sampling", [Sampling(), GREEDY], ids=["T=1", "T=0"])
@every_proposer
def test_caches_hold_the_committed_text(name: str, sampling: Sampling, batch: int) -> None:
    """The checks are in `Watched`, between all calls of the loop."""
    verifier = CountingLM()
    proposer = PROPOSERS[name]()
    draft = CountingLM(DRAFT, max_length=14) if name.startswith("draft_model") else None
    if draft:
        proposer = DraftModel(draft, Chain(GAMMA))
    watched = Watched(proposer, verifier, draft)
    stopping = Stopping(12, ENDS)
    speculative = decoder(watched, verifier=verifier, sampling=sampling, stopping=stopping)
    speculative.batch = batch
    assert len(speculative.decode(requests(20))) == 20


@every_batch
@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_a_draft_model_that_is_the_verifier_is_always_right(gamma: int, batch: int) -> None:
    """p = q after any context: a rejection means that the two read different texts.

    This is how a draft cache goes wrong in practice: the text stays lossless, acceptance does not.
    """
    distribution = full_context(21, 1.0, V)
    proposer = DraftModel(table_lm(distribution), Chain(gamma))
    traces = decoder(proposer, distribution, stopping=Stopping(15, ENDS), batch=batch).decode(
        requests(25)
    )
    for step in all_steps(traces):
        assert step.accepted == step.depth, "a draft token was rejected although p = q"
        assert all(value == pytest.approx(1.0) for value in step.overlap)


@pytest.mark.parametrize(("accuracy", "share"), [(1.0, 1.0), (0.0, 0.0)])
def test_a_recording_is_read_from_where_the_text_stands(accuracy: float, share: float) -> None:
    """At temperature 0 the recorded text is the text: all of it is accepted, or none of it."""
    distribution = full_context(61, 1.0, V)
    arm: dict[str, Any] = {
        "distribution": distribution,
        "sampling": GREEDY,
        "stopping": Stopping(11),
    }
    plain = decoder(NoProposer(), **arm).decode(requests(6))
    texts: dict[str, Sequence[int]] = {trace.prompt_id: trace.output_ids for trace in plain}
    again = decoder(Recorded(texts, GAMMA, accuracy), batch=3, **arm).decode(requests(6))
    assert [trace.output_ids for trace in again] == [trace.output_ids for trace in plain]
    for step in all_steps(again):
        assert step.accepted == share * step.drafted


def test_ngrams_repeat_what_followed_last_time() -> None:
    """A text that goes round in a circle is known from its second round on."""
    follows = torch.eye(V, dtype=torch.float64).roll(1, dims=1)  # 0 1 2 0 1 2 ...
    arm: dict[str, Any] = {
        "distribution": lambda tokens: follows[tokens[-1]],
        "stopping": Stopping(13),
    }
    (trace,) = decoder(NGram(GAMMA), **arm).decode([Request("0", (0, 1, 2, 0))])
    assert trace.output_ids == (1, 2, 0) * 4 + (1,)
    assert [step.accepted for step in trace.steps] == [2, 2, 2, 2, 0]


@every_batch
@every_proposer
def test_greedy_texts_are_the_same_for_all_proposers(name: str, batch: int) -> None:
    distribution = full_context(31, 1.0, V)
    prompts = [Request(str(n), [n % V, (n // V) % V, 1]) for n in range(9)]
    arm: dict[str, Any] = {
        "distribution": distribution,
        "sampling": GREEDY,
        "stopping": Stopping(12, ENDS),
    }
    expected = decoder(NoProposer(), **arm).decode(prompts)
    found = decoder(PROPOSERS[name](), batch=batch, **arm).decode(prompts)
    assert [t.output_ids for t in found] == [t.output_ids for t in expected]
    assert [t.finish_reason for t in found] == [t.finish_reason for t in expected]


# --- what is counted ----------------------------------------------------------------------------


@pytest.mark.parametrize("stop_strings", [(), ("ca", "bbb")], ids=["", "stop"])
@every_batch
@every_proposer
def test_counts_add_up(name: str, batch: int, stop_strings: tuple[str, ...]) -> None:
    stopping = Stopping(11, ENDS if not stop_strings else frozenset(), stop_strings, spell)
    for trace in decode(name, 40, stopping=stopping, batch=batch):
        assert sum(step.emitted for step in trace.steps) == len(trace.output_ids)
        assert trace.num_prompt_tokens == len(PROMPT)
        for number, step in enumerate(trace.steps, start=1):
            ended = step.outcome is Outcome.ENDED
            assert step.emitted == step.accepted + (not ended), (
                f"{step}: a step emits what it accepts and one token of the verifier's, unless the"
                " text ended before"
            )
            assert not ended or number == len(trace.steps), "a text went on after its end"
            assert 0 <= step.accepted <= step.depth <= step.drafted
            assert (step.outcome is Outcome.RECOVERED) <= (step.drafted > 0)
            assert all(0 <= value <= 1 + 1e-9 for value in step.overlap)


@pytest.mark.parametrize("name", ["none", "ngram", "recorded", "draft_model", "ranked_tree"])
def test_the_last_step_says_where_the_text_ended(name: str) -> None:
    """An end token that was drafted and accepted leaves no room for a token of the verifier's."""
    traces = decode(name, 200, stopping=Stopping(11, ENDS), batch=50)
    last = [trace.steps[-1] for trace in traces if trace.finish_reason == "eos"]
    assert last
    drafted = [step for step in last if step.outcome is Outcome.ENDED]
    assert all(step.accepted >= 1 for step in drafted)
    assert bool(drafted) == (name != "none"), f"{name}: {len(drafted)} texts ended in a draft"


@pytest.mark.parametrize("name", CHAINS)
def test_overlap_is_noted_for_each_visited_node(name: str) -> None:
    """A chain visits the root and the accepted nodes, without a leaf that has no candidate."""
    for step in all_steps(decode(name, 40, stopping=Stopping(11))):
        assert len(step.overlap) == min(step.accepted + 1, step.drafted)


# --- where texts end ----------------------------------------------------------------------------


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
@pytest.mark.parametrize("gamma", [1, 2, 5, 20])
def test_the_budget_is_never_exceeded(gamma: int, max_new_tokens: int) -> None:
    proposers: list[Proposer] = [DraftModel(table_lm(DRAFT), Chain(gamma)), NGram(gamma)]
    for proposer in proposers:
        for batch in (1, 5):
            stopping = Stopping(max_new_tokens)
            traces = decoder(proposer, stopping=stopping, batch=batch).decode(requests(10))
            assert {len(trace.output_ids) for trace in traces} == {max_new_tokens}
            assert {trace.finish_reason for trace in traces} == {"length"}
            deepest = max(step.depth for step in all_steps(traces))
            assert deepest <= max_new_tokens - 1, "a draft token that no budget is left for"


@every_batch
@pytest.mark.parametrize("name", ["recorded", "draft_model", "draft_model_greedy", "ranked_tree"])
def test_trees_are_as_deep_as_the_budget_allows(name: str, batch: int) -> None:
    """Pruning too much costs speed in silence; the verifier always adds one token of its own."""
    for trace in decode(name, 10, stopping=Stopping(9), batch=batch):
        left = 9
        for step in trace.steps:
            assert step.depth == min(GAMMA, left - 1), f"{left} tokens left, and depth {step.depth}"
            left -= step.emitted


@every_batch
@every_proposer
def test_nothing_follows_an_end_token(name: str, batch: int) -> None:
    traces = decode(name, 100, stopping=Stopping(6, ENDS), batch=batch)
    for trace in traces:
        where = [n for n, token in enumerate(trace.output_ids) if token in ENDS]
        ended = trace.finish_reason == "eos"
        assert where == ([len(trace.output_ids) - 1] if ended else []), (
            f"{trace.output_ids} goes on after an end token, or ends for no reason"
        )
        assert ended or (trace.finish_reason == "length" and len(trace.output_ids) == 6)
    assert {trace.finish_reason for trace in traces} == {"eos", "length"}


def test_an_end_token_that_takes_the_last_of_the_budget_is_an_end() -> None:
    (trace,) = decoder(
        NoProposer(), lambda _: TARGET(()).new_tensor([0.0, 0.0, 1.0]), stopping=Stopping(1, ENDS)
    ).decode(requests(1))
    assert (trace.output_ids, trace.finish_reason) == ((2,), "eos")


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    for name in PROPOSERS:
        speculative = decoder(PROPOSERS[name](), stopping=Stopping(6, ENDS))
        (trace,) = speculative.decode([Request("0", (0, 2, 1, 2))])
        assert trace.output_ids


def cut_at(text: str, strings: Sequence[str]) -> str:
    """Return the text up to the token that completes a stop string, the slow and simple way."""
    for end in range(1, len(text) + 1):
        if any(string in text[:end] for string in strings):
            return text[:end]
    return text


@pytest.mark.parametrize("strings", [("b",), ("ca",), ("abca",), ("cc", "bab"), ("bbbbbbbbb",)])
@every_batch
@every_proposer
def test_a_stop_string_cuts_at_the_token_that_completes_it(
    name: str, batch: int, strings: tuple[str, ...]
) -> None:
    """Greedy texts are known from the plain loop, so the place of the cut is known too."""
    distribution = full_context(41, 1.0, V)
    prompts = [Request(str(n), [n % V, n // V]) for n in range(9)]
    endless, stopping = Stopping(14, decode=spell), Stopping(14, frozenset(), strings, spell)
    plain = decoder(NoProposer(), distribution, sampling=GREEDY, stopping=endless).decode(prompts)
    found = decoder(
        PROPOSERS[name](), distribution, sampling=GREEDY, stopping=stopping, batch=batch
    ).decode(prompts)
    for whole, trace in zip(plain, found, strict=True):
        expected = cut_at(whole.output_text, strings)
        assert trace.output_text == expected, f"{whole.output_text} cut for {strings}"
        stopped = any(string in expected for string in strings)
        assert trace.finish_reason == ("stop" if stopped else "length")


@every_proposer
def test_a_sampled_text_holds_a_stop_string_only_at_its_end(name: str) -> None:
    stopping = Stopping(12, frozenset(), ("ca", "bb"), spell)
    traces = decode(name, 60, stopping=stopping, batch=4)
    for trace in traces:
        assert trace.output_text == cut_at(trace.output_text, stopping.stop_strings)
        stopped = trace.output_text.endswith(stopping.stop_strings)
        assert trace.finish_reason == ("stop" if stopped else "length")
    assert {trace.finish_reason for trace in traces} == {"stop", "length"}


@every_proposer
def test_a_text_ends_where_the_verifiers_context_is_full(name: str) -> None:
    verifier = CountingLM(max_length=len(PROMPT) + 4)
    for budget, reason in ((3, "length"), (4, "length"), (5, "context"), (50, "context")):
        (trace,) = decode(name, verifier=verifier, stopping=Stopping(budget))
        assert (len(trace.output_ids), trace.finish_reason) == (min(budget, 4), reason)
        assert verifier.last_position < verifier.max_length, "a position behind the context"


# --- requests are kept apart --------------------------------------------------------------------


def mixed_requests() -> list[Request]:
    """Unlike prompts, some of one token."""
    prompts: list[Tokens] = [(n % V, *PROMPT[: n % 5]) for n in range(11)]
    return [Request(str(number), prompt) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_p=0.9)], ids=["T=1", "top_p"])
@pytest.mark.parametrize("batch", [2, 4, 64])
@every_proposer
def test_a_batch_gives_the_traces_of_single_runs(name: str, batch: int, sampling: Sampling) -> None:
    arm: dict[str, Any] = {"sampling": sampling, "stopping": Stopping(9, ENDS), "seed": 5}
    together = decoder(PROPOSERS[name](), batch=batch, **arm).decode(mixed_requests())
    alone = [decoder(PROPOSERS[name](), **arm).decode([request])[0] for request in mixed_requests()]
    for one, other in zip(together, alone, strict=True):
        assert outcome(one) == outcome(other), (
            f"request {one.prompt_id} decodes differently in a batch of {batch} than alone"
        )


@every_batch
@every_proposer
def test_the_seed_and_nothing_else_decides(name: str, batch: int) -> None:
    stopping = Stopping(9)
    same = decoder(PROPOSERS[name](), stopping=stopping, batch=batch, seed=1)
    first, again = ([outcome(t) for t in same.decode(requests(12))] for _ in range(2))
    assert first == again, "the same decoder gave two results: something is left from the first run"
    fresh = decode(name, 12, stopping=stopping, batch=batch, seed=1)
    assert [outcome(t) for t in fresh] == first
    other = decode(name, 12, stopping=stopping, batch=batch, seed=2)
    # 12 texts of 9 tokens: equal by chance with a probability below 1e-20.
    assert [t.output_ids for t in other] != [t.output_ids for t in fresh]


@every_proposer
def test_requests_have_noise_of_their_own(name: str) -> None:
    """40 texts of 12 tokens after one prompt: that two are equal is rare, that ten are is a bug."""
    traces = decode(name, 40, stopping=Stopping(12), batch=8)
    assert len({trace.output_ids for trace in traces}) > 30
    assert len({trace.output_ids[0] for trace in traces}) > 1


@every_proposer
def test_the_order_and_the_neighbours_do_not_matter(name: str) -> None:
    stopping = Stopping(9, ENDS)
    several = mixed_requests()
    speculative = decoder(PROPOSERS[name](), stopping=stopping, batch=3)
    forwards = {t.prompt_id: outcome(t) for t in speculative.decode(several)}
    backwards = {t.prompt_id: outcome(t) for t in speculative.decode(several[::-1])}
    fewer = {t.prompt_id: outcome(t) for t in speculative.decode(several[2:7])}
    assert forwards == backwards
    assert fewer.items() <= forwards.items()


def test_turns_of_one_prompt_have_noise_of_their_own() -> None:
    turns = [Request("a", PROMPT, turn=turn) for turn in range(20)]
    traces = decoder(NoProposer(), stopping=Stopping(9), batch=4).decode(turns)
    assert [trace.turn for trace in traces] == list(range(20))
    assert len({trace.output_ids for trace in traces}) > 15


def test_two_requests_of_one_name_are_refused_or_kept_apart() -> None:
    """No result of another prompt may ever be used again."""
    twins = [Request("a", (0,)), Request("a", (1, 1, 1))]
    try:
        traces = decoder(NoProposer(), stopping=Stopping(4)).decode(twins)
    except UserError:
        return
    assert [trace.num_prompt_tokens for trace in traces] == [1, 3]


def test_traces_come_in_the_order_of_the_requests_and_stream_as_they_finish() -> None:
    several = mixed_requests()
    speculative = decoder(NGram(GAMMA), stopping=Stopping(9, ENDS), batch=4)
    decoded = speculative.decode(several)
    assert [trace.prompt_id for trace in decoded] == [request.prompt_id for request in several]
    streamed = list(speculative.stream(several))
    assert sorted(map(repr, map(outcome, streamed))) == sorted(map(repr, map(outcome, decoded)))
    assert [t.prompt_id for t in streamed] != [t.prompt_id for t in decoded]
    assert speculative.decode([]) == []


@pytest.mark.parametrize("batch", [2, 5])
@every_proposer
def test_waiting_requests_take_the_rows_of_finished_ones(name: str, batch: int) -> None:
    verifier = CountingLM()
    traces = decode(name, 20, verifier=verifier, stopping=Stopping(12, ENDS), batch=batch)
    num_steps = sum(len(trace.steps) for trace in traces)
    num_rows = verifier.num_rows_per_call
    assert verifier.num_calls < num_steps, "a batch must share the verifier's forwards"
    assert sum(num_rows) == num_steps
    assert num_rows[0] == batch
    assert num_rows == sorted(num_rows, reverse=True), (
        f"rows per call {num_rows}: some were left empty although requests were waiting"
    )


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [(Request("bad", ()), "empty"), (Request("bad", (0,) * 8), "8 tokens do not fit")],
    ids=["empty", "too-long"],
)
def test_prompts_that_cannot_be_decoded_are_refused_before_any_is(
    bad: Request, complaint: str
) -> None:
    verifier = CountingLM(max_length=8)
    speculative = decoder(NGram(GAMMA), verifier=verifier, stopping=Stopping(3), batch=2)
    with pytest.raises(UserError, match=complaint) as caught:
        speculative.decode([Request("a", (0,)), Request("b", (1,)), bad])
    assert "bad" in str(caught.value), "the message must name the prompt"
    assert verifier.num_calls == verifier.num_prefill_cells == 0
    speculative.decode([Request("longest", (0,) * 7)])


class _NeverLossless(Rejection):
    lossless_for = frozenset()


def test_a_pair_that_is_not_lossless_is_refused_unless_allowed() -> None:
    parts = (table_lm(TARGET), NGram(GAMMA), _NeverLossless())
    with pytest.raises(UserError, match="not lossless for deterministic"):
        SpeculativeDecoder(*parts)
    allowed = SpeculativeDecoder(*parts, stopping=Stopping(3), allow_lossy=True)
    assert not allowed.lossless, "results of such a pair must be marked"
    assert len(allowed.decode(requests(1))[0].output_ids) == 3
    assert decoder(NGram(GAMMA)).lossless


@pytest.mark.parametrize(("field", "value"), [("batch", 0), ("batch", 1.5), ("seed", -1)])
def test_senseless_numbers_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        decoder(NoProposer(), **{field: value})


# --- the watchers can see -----------------------------------------------------------------------


def test_trees_are_read_along_their_branches() -> None:
    """A verifier that read siblings as well would change the greedy text of a tree."""

    class Blind(TableLM):
        def forward(
            self,
            rows: Sequence[int],
            token_ids: Tensor,
            positions: Tensor | None = None,
            attend: Tensor | None = None,
            layers: Sequence[Layer] = (),
        ) -> Forward:
            return super().forward(rows, token_ids, None, None, layers)

    distribution = full_context(51, 1.0, V)

    def logits(tokens: Tokens) -> Tensor:
        return distribution(tokens).log()

    arm: dict[str, Any] = {"sampling": GREEDY, "stopping": Stopping(30)}
    seeing, blind = (
        decoder(RankedTree(TREE, distribution), verifier=model(logits, V), **arm)
        .decode(requests(1))[0]
        .output_ids
        for model in (TableLM, Blind)
    )
    assert seeing != blind


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_distributions_that_are_not_numbers_are_refused(temperature: float) -> None:
    """An fp16 model that overflows on some prompt only, long after it was proven to work."""
    distribution = memoryless(0.2, 0.3, 0.5)
    broken = cache(lambda tokens: distribution(tokens) * (float("nan") if len(tokens) > 4 else 1.0))
    verifier = table_lm(broken)
    drafts = [DraftModel(table_lm(each), Chain(2)) for each in (broken, distribution)]
    for proposer in (NoProposer(), *drafts):
        decoder = SpeculativeDecoder(
            verifier, proposer, Rejection(), Sampling(temperature), Stopping(9)
        )
        with pytest.raises(UserError, match=r"^prompt a: .*NaN"):
            decoder.decode([Request("a", [0, 1])])


def test_the_seconds_of_a_step_are_shared_among_its_requests() -> None:
    clock = Clock(torch.device("cpu"))
    clock.seconds = {"propose": 3.0, "verify": 6.0, "other": 9.0}
    step = clock.stamp(Step(0, 0, 0, 1, Outcome.BONUS, (), 0), share=3)
    assert (step.propose_seconds, step.verify_seconds, step.other_seconds) == (1.0, 2.0, 3.0)


def test_what_a_stop_string_cuts_off_was_not_visited() -> None:
    """Of three nodes that the rule saw, the text ends with the token that followed the first."""
    flight = Flight(
        Request("a", [0]), 0, Sampling(), Stopping(9, stop_strings=("b",), decode=spell), 0, 9
    )
    verdict = Verdict(
        (1, 2), 0, Outcome.BONUS, 1.5, (0.1, 0.2, 0.3), (0.4,), ((0.5, 0.6), (0.7, 0.8), (0.9, 1.0))
    )
    step = flight.commit(Proposal(CandidateTree.chain(0, (1, 2))), verdict)
    assert (step.emitted, step.accepted, step.outcome) == (1, 1, Outcome.ENDED)
    assert (step.overlap, step.bound, step.divergence) == ((0.1,), (0.4,), ((0.5, 0.6),))
