"""A middle model that decodes speculatively itself: its chains are draws from it alone."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.errors import Unfit, UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import Proposer, VerificationRule
from specdec.core.randomness import RandomStream, Stream
from specdec.core.sampling import Sampling
from specdec.core.values import Context, Draw, Proposal, Verdict
from specdec.decoding import request as request_module
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lab.replay.replayer import distributions_of
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.proposer.cascade import Cascade, _Draft
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram, NGramIndex
from specdec.proposer.none import NoProposer
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.testing.table_lm import random_table
from specdec.tree.chain import Chain
from specdec.verification.block import Block
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from tests.support.arms import decoder
from tests.support.enumerated import written
from tests.support.families import tiny_model
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingTree,
    RankedTree,
    TextDistribution,
    Tokens,
    full_context,
    mixture,
    table_lm,
    text_distribution,
    total_variation,
)

EXACT = 1e-12
FOUND = 1e-3
V = 2  # tokens: three models make many plays
TARGET = full_context(21, 1.0, V)
MIDDLE = mixture(TARGET, full_context(22, 1.0, V), 0.4)
TINY = mixture(MIDDLE, full_context(23, 1.0, V), 0.4)
TEXT = (0, 1, 1, 0, 1)  # n-grams find its end again


def tiny(depth: int = 1) -> DraftModel:
    return DraftModel(table_lm(TINY, V), ChoosingChain(depth))


def cascade(
    inner: Proposer, rule: VerificationRule | None = None, depth: int = 2, kind: Any = Cascade
) -> Cascade:
    return kind(table_lm(MIDDLE, V), inner, rule or Rejection(), Chain(depth))


def enumerated(proposer: Cascade, rule: VerificationRule, length: int) -> TextDistribution:
    """Return the exact distribution of what is decoded with a cascade."""
    verifier = table_lm(TARGET, V)
    loop = decoder(proposer, verifier=verifier, rule=rule, stopping=Stopping(length))
    loop._claims = None  # plays are no sample of what is drawn
    return written(loop, TEXT)


def bias(found: TextDistribution, length: int) -> float:
    return total_variation(found, text_distribution(TARGET, length, NO_END, TEXT))


FORK = (-1, 0, 0, 1)
CASCADES: dict[str, Callable[[], Cascade]] = {
    "none": lambda: cascade(NoProposer()),
    "ngram": lambda: cascade(NGram(3, max_ngram=2), depth=3),
    "match": lambda: cascade(NGram(3, max_ngram=2), Match(), depth=3),
    "ranked_tree": lambda: cascade(RankedTree(FORK, TINY)),
    "draft_model": lambda: cascade(tiny()),
    "draft_model_block": lambda: cascade(tiny(), Block()),
    "draft_tree": lambda: cascade(
        DraftModel(table_lm(TINY, V), ChoosingTree((-1, 0, 0), Draw.IID))
    ),
    "nested": lambda: cascade(cascade(NGram(2, max_ngram=1), depth=1)),
}


@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=["rejection", "block"])
@pytest.mark.parametrize("name", CASCADES)
def test_the_text_has_exactly_the_verifiers_distribution(name: str, rule: VerificationRule) -> None:
    """All random decisions are enumerated, those within the proposer too."""
    length = 4 if name == "ngram" else 3
    found = bias(enumerated(CASCADES[name](), rule, length), length)
    assert found < EXACT, f"TV {found:.3e}"


# --- negative controls: each must be found ------------------------------------------------------


class _InnerQ(_Draft):
    """Says of an accepted candidate that it was drawn from the inner proposer's distribution."""

    def take(self, proposal: Proposal, verdict: Verdict, probs: Tensor) -> None:
        super().take(proposal, verdict, probs)
        q = proposal.draft_probs
        if q is not None and verdict.path:
            self._probs[-1] = torch.cat([q[: len(verdict.path)], self._probs[-1][-1:]])


class _CorrectionDropped(_Draft):
    """Ends the chain where a candidate was refused, without what came in its place."""

    def take(self, proposal: Proposal, verdict: Verdict, probs: Tensor) -> None:
        super().take(proposal, verdict, probs)
        self.text.pop()
        self._probs[-1] = self._probs[-1][:-1]
        self._end = len(self.text)


class _Shifted(_Draft):
    """Hands on what the middle model says one token too late."""

    def take(self, proposal: Proposal, verdict: Verdict, probs: Tensor) -> None:
        super().take(proposal, verdict, probs)
        self._probs[-1] = self._probs[-1].roll(1, dims=0)


class _Drafting(Cascade):
    kind: type[_Draft]

    def _draft(self, contexts: Sequence[Context]) -> list[Proposal]:
        drafts = [self.kind(each, self.max_depth, self.temperature) for each in contexts]
        while growing := [draft for draft in drafts if draft.num_missing]:
            self._step(growing)
        return [draft.proposal for draft in drafts]


class _FromQ(Rejection):
    """Accepts whatever was drafted."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        (*path,) = range(1, proposal.tree.num_draft_tokens + 1)
        return Verdict(tuple(path), stream.choose(verifier_probs[len(path)]), Outcome.BONUS)


def wrong(kind: type[_Draft]) -> type[Cascade]:
    return type("Wrong", (_Drafting,), {"kind": kind})


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (_InnerQ, Rejection()),
        (_InnerQ, Block()),
        (_CorrectionDropped, Rejection()),
        (_Shifted, Rejection()),
    ],
    ids=["inner-q", "inner-q-block", "correction-dropped", "shifted-q"],
)
def test_a_wrong_cascade_is_found(kind: type[_Draft], rule: VerificationRule) -> None:
    found = bias(enumerated(cascade(tiny(), kind=wrong(kind)), rule, 3), 3)
    assert found > FOUND, f"TV {found:.1e}: the enumeration is blind to this bug"


def test_a_wrong_rule_within_is_found() -> None:
    """It is refused where it is proven; past that, the enumeration shows it."""
    with pytest.raises(UserError, match="off by"):
        cascade(tiny(), _FromQ())
    found = cascade(tiny())
    found.rule = _FromQ()
    assert bias(enumerated(found, Rejection(), 3), 3) > FOUND


# --- what is proposed ---------------------------------------------------------------------------


class _Watched(Cascade):
    """Notes its proposals."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.seen: list[tuple[Tokens, int, Proposal]] = []

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        proposals = super().propose(contexts)
        for context, proposal in zip(contexts, proposals, strict=True):
            self.seen.append((tuple(context.token_ids), context.max_depth, proposal))
            if proposal.has_candidates:  # all cells are there but the last, and none is read twice
                text = len(context.token_ids) + proposal.tree.num_draft_tokens
                assert self.model.length(context.row) == text - 1
        return proposals


def decoded(proposer: Proposer, batch: int = 3, **options: Any) -> list[sd.Trace]:
    prompts = [[n, 1, 2, 3, 1, 2][: 2 + n] for n in range(5)]
    requests = [Request(str(n), ids) for n, ids in enumerate(prompts)]
    loop = decoder(
        proposer, verifier=random_table(1), stopping=Stopping(24), batch=batch, **options
    )
    return loop.decode(requests)


class _Stale(_Watched):
    """Keeps in the middle model's cache what the verifier refused, in place of what it accepted."""

    def rewind(self, contexts: Sequence[Context]) -> None:
        for context in contexts:
            committed = len(context.token_ids) - 1
            if self.model.length(context.row) > committed:
                self.model.keep(context.row, committed - 1, [1])
        super().rewind(contexts)


def off_q(proposer: _Watched, temperature: float) -> float:
    """Return how far q is from the middle model's distribution, at most."""
    found, reader, sampling = 0.0, random_table(2), Sampling(temperature)
    for text, _, proposal in proposer.seen:
        rows = proposal.draft_probs
        for node, row in enumerate(() if rows is None else rows):
            before = (*text, *proposal.tree.token_ids[1 : node + 1])
            expected = sampling.warp(reader._logits_after(before))
            found = max(found, float((row - expected).abs().max()))
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_q_is_the_middle_models_and_the_chain_whole(temperature: float) -> None:
    middle = random_table(2)
    proposer = _Watched(middle, NGram(4), Rejection(), Chain(4), temperature)
    traces = decoded(proposer)
    assert off_q(proposer, temperature) < 1e-6
    assert all(each.tree.is_chain for _, _, each in proposer.seen)
    assert all(each.tree.num_draft_tokens == min(4, most) for _, most, each in proposer.seen)
    calls = sum(each.num_draft_calls or 0 for _, _, each in proposer.seen)
    assert calls == sum(step.draft_calls or 0 for trace in traces for step in trace.steps)
    assert middle.num_calls <= calls  # rows of a batch share forwards


def test_stale_cells_of_the_middle_model_are_found() -> None:
    """The text stays lossless with them: q is what was drawn from, but no longer the model's."""
    proposer = _Stale(random_table(2), NGram(4), Rejection(), Chain(4), 0.7)
    decoded(proposer)
    assert off_q(proposer, 0.7) > 0.1


def test_without_candidates_within_it_is_the_draft_model() -> None:
    """Each forward then yields one token; with good candidates it yields more."""
    empty, good = (
        decoded(Cascade(random_table(2), inner, Rejection(), Chain(4)))
        for inner in (NoProposer(), DraftModel(random_table(2), Chain(4)))
    )
    steps = [step for trace in empty for step in trace.steps]
    assert all(step.draft_calls == step.drafted for step in steps)
    steps = [step for trace in good for step in trace.steps]
    assert all(step.draft_calls == min(1, step.drafted) for step in steps)


class _Unrewinding:
    """Hides that an n-gram proposer can go back, so that it is begun anew."""

    def __init__(self) -> None:
        of = NGram(4)
        self.draw, self.max_depth, self.layers = of.draw, of.max_depth, of.layers
        self.open, self.reset, self.propose, self.update = of.open, of.reset, of.propose, of.update


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_going_back_and_beginning_anew_are_the_same(temperature: float) -> None:
    """And neither knows of other requests in flight."""
    options: dict[str, Any] = {"sampling": Sampling(temperature)}
    texts = [
        [trace.output_ids for trace in decoded(proposer, batch, **options)]
        for batch in (1, 3)
        for proposer in (
            Cascade(random_table(2), NGram(4), Rejection(), Chain(4)),
            Cascade(random_table(2), _Unrewinding(), Rejection(), Chain(4)),
        )
    ]
    assert all(each == texts[0] for each in texts)


def test_an_index_that_went_back_is_one_that_never_read_on() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = rng.choices(range(3), k=rng.randint(1, 12))
        index, sizes = NGramIndex(range(3, 0, -1)), range(3, 0, -1)
        index.find(text)
        further = [*text, *rng.choices(range(3), k=5)]
        for length in sorted(rng.sample(range(len(text) + 1, len(further) + 1), 2)):
            index.find(further[:length])
        changed = [*text[:-1], rng.randrange(3)]
        index.rewind(len(changed))
        other, fresh = [*changed, *rng.choices(range(3), k=3)], NGramIndex(sizes)
        assert index.find(changed) == fresh.find(changed)
        assert index.find(other) == fresh.find(other)
        assert index._next == fresh._next


def test_every_decision_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream of one purpose, step or inner step is that of another."""
    used: list[tuple[object, ...]] = []

    class Noted(RandomStream):
        def under(self, *purpose: object) -> RandomStream:
            used.append((*self._key, *purpose))
            return super().under(*purpose)

    monkeypatch.setattr(request_module, "RandomStream", Noted)
    decoded(Cascade(random_table(2), NGram(2), Rejection(), Chain(4)))
    assert len(used) > 100
    assert len(set(used)) == len(used)
    stream = RandomStream(1, "a")
    stream.peek(3)
    assert stream.under("x").uniform() == RandomStream(1, "a", "x").uniform()


def test_a_middle_model_of_a_short_context_ends_to_draft() -> None:
    short = random_table(2, max_length=12)
    traces = decoded(Cascade(short, NGram(4), Rejection(), Chain(4)), sampling=Sampling(0.0))
    plain = decoded(NoProposer(), sampling=Sampling(0.0))
    assert [each.output_ids for each in traces] == [each.output_ids for each in plain]
    last = [trace.steps[-1].drafted for trace in traces]
    assert not any(last)


# --- what is refused ----------------------------------------------------------------------------


class _Reading(NGram):
    layers = ("final",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"inner": _Reading(2)}, "inner: _Reading reads hidden states"),
        ({"rule": sd.TopPlusOne()}, "rule: TopPlusOne is not lossless for deterministic"),
        ({"tree": sd.Sparse([[0], [1]])}, "tree: a cascade drafts one chain"),
        ({"tree": Chain(3, min_confidence=0.5)}, r"tree.min_confidence=0.5: a cascade drafts all"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"model": "zoo:draft"}, "middle model: builtins.str is no model"),
        ({"inner": None}, "no proposer"),
        ({"rule": None}, "no verification rule"),
    ],
)
def test_bad_parts_are_refused_in_one_line(change: dict[str, Any], complaint: str) -> None:
    parts: dict[str, Any] = {
        "model": random_table(2),
        "inner": NGram(2),
        "rule": Rejection(),
        "tree": Chain(2),
    }
    with pytest.raises((UserError, Unfit), match=complaint) as found:
        Cascade(**{**parts, **change})
    assert "\n" not in str(found.value)
    assert Cascade(**parts).draw is Draw.SINGLE


@pytest.mark.parametrize(
    "inner",
    [
        DraftModel(random_table(2), sd.Sparse([[0], [1]])),
        sd.Suffix(2, num_nodes=3),
        sd.Hybrid([sd.Suffix(2), NGram(2)], mode="merge"),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_a_middle_model_that_reads_chains_alone_gets_no_branches(inner: Proposer) -> None:
    """Whatever makes them: it is said before a token is decoded."""
    middle = causal_lm(tiny_model("mamba2"))
    with pytest.raises(Unfit, match=r"^inner: mamba2 cannot read trees"):
        Cascade(middle, inner, Rejection(), Chain(2))


def test_three_models_have_three_caches() -> None:
    verifier, middle = (HFCausalLM(tiny_model("gpt2")) for _ in range(2))
    with pytest.raises(UserError, match="DraftModel: drafts with the very model that verifies"):
        Cascade(middle, DraftModel(middle, Chain(2)), Rejection(), Chain(2))
    sharing = Cascade(middle, DraftModel(verifier, Chain(2)), Rejection(), Chain(2))
    with pytest.raises(UserError, match="DraftModel: drafts with the very model that verifies"):
        sd.SpeculativeDecoder(verifier, sharing, Rejection())


@pytest.mark.parametrize("vocab_size", [11, 15])
def test_a_middle_model_may_have_more_or_fewer_tokens(vocab_size: int) -> None:
    """As checkpoints of one tokenizer do, whose vocabularies are padded to unlike sizes."""
    greedy: dict[str, Any] = {"sampling": Sampling(0.0)}
    expected = [trace.output_ids for trace in decoded(NoProposer(), **greedy)]
    assert any(token >= 11 for ids in expected for token in ids)
    inner = DraftModel(random_table(3, vocab_size), Chain(2))
    proposer = _Watched(random_table(2, vocab_size), inner, Rejection(), Chain(3))
    assert [trace.output_ids for trace in decoded(proposer, **greedy)] == expected
    assert all(p.draft_probs is None or p.draft_probs.shape[-1] == 13 for _, _, p in proposer.seen)
    assert decoded(proposer, sampling=Sampling(1.0))


def test_replay_reads_the_middle_model() -> None:
    verifier, middle = HFCausalLM(tiny_model("gpt2")), HFCausalLM(tiny_model("gpt2", n_layer=1))
    cascade = Cascade(middle, NGram(2), Rejection(), Chain(2))
    found = distributions_of(cascade, verifier)
    assert isinstance(found, ModelDistributions)
    assert found.model is middle
