"""A draft model's chains: drawn from the q that is handed on, from the text as it is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import Forward, Proposer
from specdec.core.sampling import Sampling, draw
from specdec.core.trace import Trace
from specdec.core.values import Context, Draw, Proposal, Verdict
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.testing.table_lm import TableLM
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.verification.rejection import Rejection
from tests.support.asking import context, draft_ids, proposals_of
from tests.support.families import noisy_copy, random_ids, tiny_model
from tests.support.toy import Conditional, full_context, mixture, table_lm

V = 5
GAMMA = 3
P = full_context(seed=1, vocab_size=V)
Q = mixture(P, full_context(seed=2, vocab_size=V), 0.5)
TEXT = (0, 3, 1, 4, 4, 2)
REQUESTS = [Request(f"p{n}", [n % V] * (1 + n % 4)) for n in range(8)]


def drafting(
    distribution: Conditional = Q,
    vocab_size: int = V,
    max_length: int = 1 << 20,
    temperature: float | None = None,
) -> tuple[DraftModel, TableLM]:
    """Make a proposer that drafts from a table, and the table itself."""
    model = table_lm(distribution, vocab_size, max_length)
    return DraftModel(model, Chain(GAMMA), temperature), model


def decoded(
    proposer: Proposer,
    distribution: Conditional = P,
    sampling: Sampling | None = None,
    batch: int = 3,
) -> list[Trace]:
    decoder = SpeculativeDecoder(
        table_lm(distribution, V),
        proposer,
        Rejection(),
        sampling or Sampling(),
        Stopping(20),
        batch,
    )
    return decoder.decode(REQUESTS)


def chain_distributions(
    distribution: Conditional, text: Sequence[int], drafted: Sequence[int]
) -> Tensor:  # [N, V]
    """What the draft says of the text, and after each of its draft tokens but the last."""
    return torch.stack([distribution((*text, *drafted[:n])).log() for n in range(len(drafted))])


# --- q is the distribution that the tokens were drawn from
# -----------------------------------------------

SETTINGS = [
    Sampling(),
    Sampling(0.6),
    Sampling(1.4, top_k=2),
    Sampling(top_p=0.7, min_p=0.1),
    Sampling(0),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("temperature", [None, 0.0, 0.5, 2.0])
def test_q_is_exactly_what_was_drawn_from(sampling: Sampling, temperature: float | None) -> None:
    """The draft's own temperature, the verifier's filters, and one uniform a token, in order."""
    proposer, _ = drafting(temperature=temperature)
    used = sampling if temperature is None else replace(sampling, temperature=temperature)
    for key in range(20):
        (proposal,) = proposals_of(
            proposer, context(TEXT, sampling=sampling, key=key), vocab_size=V
        )
        q, drafted = proposal.draft_probs, draft_ids(proposal)
        assert q is not None
        assert (proposal.draw, len(drafted)) == (Draw.SINGLE, GAMMA)
        expected = used.warp(chain_distributions(Q, TEXT, drafted))
        torch.testing.assert_close(
            q, expected, msg=lambda text: f"q is not the draft's distribution: {text}"
        )
        stream = context(TEXT, key=key).draft_stream
        uniforms = torch.tensor([[stream.uniform()] for _ in drafted], dtype=torch.float64)
        assert draw(q, uniforms)[:, 0].tolist() == drafted, "the tokens are not drawn from this q"


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_a_greedy_draft_says_so(sampling: Sampling) -> None:
    """At temperature 0, q is one-hot: a soft q beside arg max drafts would bias the text."""
    proposer, _ = drafting(temperature=0)
    (proposal,) = proposals_of(proposer, context(TEXT, sampling=sampling), vocab_size=V)
    assert proposal.draft_probs is not None
    best = [int(logits.argmax()) for logits in chain_distributions(Q, TEXT, draft_ids(proposal))]
    assert draft_ids(proposal) == best
    assert torch.equal(proposal.draft_probs, torch.eye(V, dtype=torch.float64)[best])


def test_noise_is_the_draft_stream_s() -> None:
    proposer, _ = drafting()
    one = context(TEXT, key="a")
    proposals_of(proposer, one, vocab_size=V)
    assert one.verify_stream.uniform() == context(TEXT, key="a").verify_stream.uniform()
    drafts = [proposals_of(proposer, context(TEXT, key=n), vocab_size=V)[0].tree for n in range(20)]
    assert len(set(drafts)) > 5, "drafts are not sampled anew"


# --- the text that is read ----------------------------------------------------------------------


def verdict(path: Sequence[int], next_token: int) -> Verdict:
    return Verdict(tuple(path), next_token, Outcome.RECOVERED)


def committed(one: Context, proposal: Proposal, accepted: int, next_token: int) -> Verdict:
    """Do as the decoder does: append what was accepted, and the verifier's token."""
    nodes = range(1, accepted + 1)
    assert isinstance(one.token_ids, list)
    one.token_ids.extend([*(proposal.tree.token_ids[node] for node in nodes), next_token])
    return verdict(nodes, next_token)


def test_drafts_go_on_from_the_committed_text_whatever_was_accepted() -> None:
    """Two rows, all numbers of accepted tokens; sometimes a row sits out a step."""
    proposer, model = drafting()
    rows = [context(TEXT, row=0), context([2], row=1)]
    proposals_of(proposer, *rows, vocab_size=V)
    proposer.reset(rows)
    for step in range(24):
        present = rows if step % 5 else rows[step % 2 :][:1]
        proposals = proposer.propose(present)
        verdicts: list[Verdict] = []
        for one, proposal in zip(present, proposals, strict=True):
            drafted = draft_ids(proposal)
            assert proposal.draft_probs is not None
            expected = Sampling().warp(chain_distributions(Q, one.token_ids, drafted))
            torch.testing.assert_close(
                proposal.draft_probs,
                expected,
                msg=lambda text, s=step, r=one.row: f"step {s}, row {r}: another text: {text}",
            )
            verdicts.append(committed(one, proposal, (step + one.row) % (GAMMA + 1), step % V))
        proposer.update(present, verdicts)
        for one in rows:
            assert model.length(one.row) < len(one.token_ids), (
                "the root is read with the next chain"
            )


def test_a_new_request_forgets_the_row_s_last_one() -> None:
    proposer, model = drafting()
    proposals_of(proposer, context(TEXT), vocab_size=V)
    following = context([1, 1])
    proposer.reset([following])
    assert model.length(0) == 1
    (proposal,) = proposer.propose([following])
    expected = Sampling().warp(chain_distributions(Q, (1, 1), draft_ids(proposal)))
    assert proposal.draft_probs is not None
    torch.testing.assert_close(proposal.draft_probs, expected)


# --- how much is drafted ------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "num_drafted"), [(1, 0), (2, 1), (3, 2), (4, 3), (50, 3)])
def test_no_deeper_than_the_budget_is_worth(budget: int, num_drafted: int) -> None:
    """The verifier adds one token of its own; a draft call for nothing is time lost."""
    proposer, model = drafting()
    (proposal,) = proposals_of(proposer, context(TEXT, budget), vocab_size=V)
    assert proposal.tree.num_draft_tokens == num_drafted
    assert proposal.num_draft_calls == num_drafted == model.num_calls


def test_rows_without_budget_do_not_hold_up_the_others() -> None:
    proposer, _ = drafting()
    rows = [context(TEXT, 1, row=0), context([2, 1], row=1), context([3], 1, row=2)]
    proposals = proposals_of(proposer, *rows, vocab_size=V)
    assert [proposal.tree.num_draft_tokens for proposal in proposals] == [0, GAMMA, 0]
    expected = Sampling().warp(chain_distributions(Q, (2, 1), draft_ids(proposals[1])))
    assert proposals[1].draft_probs is not None
    torch.testing.assert_close(proposals[1].draft_probs, expected)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_draft_equal_to_the_verifier_is_always_right(temperature: float, batch: int) -> None:
    proposer, _ = drafting(P)
    for trace in decoded(proposer, P, Sampling(temperature, top_k=4), batch):
        assert [step.accepted for step in trace.steps] == [3, 3, 3, 3, 3]
        assert {step.outcome for step in trace.steps} == {Outcome.BONUS}
        for step in trace.steps:
            assert step.overlap == pytest.approx([1.0] * step.drafted)


def test_a_draft_that_resembles_the_verifier_is_sometimes_right() -> None:
    """The control of the test above."""
    proposer, _ = drafting(Q)
    steps = [step for trace in decoded(proposer) for step in trace.steps]
    assert {step.accepted for step in steps} == {0, 1, 2, 3}


# --- a context of its own -----------------------------------------------------------------------


class Bounded(TableLM):
    """A table that refuses to hold more than its context, as position embeddings do."""

    def forward(self, rows: Sequence[int], token_ids: Tensor, *args: Any, **kwargs: Any) -> Forward:
        out = super().forward(rows, token_ids, *args, **kwargs)
        assert max(self.length(row) for row in rows) <= self.max_length, (
            "beyond the draft's context"
        )
        return out


@pytest.mark.parametrize("max_length", [3, 8, 9, 12, 16])
@pytest.mark.parametrize("batch", [1, 3])
def test_where_the_draft_s_context_ends_there_are_no_drafts_and_the_same_text(
    max_length: int, batch: int
) -> None:
    model = Bounded(lambda tokens: Q(tokens).log(), V, max_length)
    found = decoded(DraftModel(model, Chain(GAMMA)), P, Sampling(0), batch)
    plain = decoded(NoProposer(), P, Sampling(0), batch)
    assert [trace.output_ids for trace in found] == [trace.output_ids for trace in plain]
    for trace in found:
        length = trace.num_prompt_tokens
        for step in trace.steps:
            room = length + GAMMA <= max_length
            assert step.drafted == (
                min(GAMMA, 20 + trace.num_prompt_tokens - length - 1) if room else 0
            )
            length += step.emitted


def test_a_prompt_beyond_the_draft_s_context_is_never_read() -> None:
    proposer, model = drafting(max_length=8)
    (proposal,) = proposals_of(proposer, context([1] * 30), vocab_size=V)
    assert draft_ids(proposal) == []
    assert (model.length(0), model.num_calls) == (0, 0)


def test_one_row_beyond_the_context_leaves_the_others_drafting() -> None:
    proposer, _ = drafting(max_length=8)
    rows = [context([1] * 30, row=0), context([2, 1], row=1), context([1] * 6, row=2)]
    proposals = proposals_of(proposer, *rows, vocab_size=V)
    assert [proposal.tree.num_draft_tokens for proposal in proposals] == [0, GAMMA, 0]
    expected = Sampling().warp(chain_distributions(Q, (2, 1), draft_ids(proposals[1])))
    assert proposals[1].draft_probs is not None
    torch.testing.assert_close(proposals[1].draft_probs, expected)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_real_draft_with_a_short_context(family: str) -> None:
    """Learned position embeddings raise an error when they are exceeded."""
    verifier = HFCausalLM(tiny_model("llama"))
    aliases: dict[str, Any] = {"n_positions": 24} if family == "gpt2" else {}
    draft = HFCausalLM(tiny_model(family, max_position_embeddings=24, **aliases))
    requests = [Request(str(num), random_ids(num, seed=num)) for num in (1, 9, 17, 22, 40)]

    def run(proposer: Proposer) -> list[Trace]:
        decoder = SpeculativeDecoder(
            verifier, proposer, Rejection(), Sampling(0), Stopping(14), batch=3
        )
        return decoder.decode(requests)

    found = run(DraftModel(draft, Chain(GAMMA)))
    assert [t.output_ids for t in found] == [t.output_ids for t in run(NoProposer())]
    drafted = [sum(step.drafted for step in trace.steps) for trace in found]
    assert drafted[-2:] == [0, 0]
    assert min(drafted[:3]) > 0


# --- padded vocabularies ------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 5, 8])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5, top_k=2), Sampling(0)], ids=str)
def test_q_is_as_wide_as_p(width: int, sampling: Sampling) -> None:
    """What the draft lacks has no mass; what the verifier lacks is cut before the softmax."""
    distribution = full_context(seed=3, vocab_size=width)
    proposer, _ = drafting(distribution, width)
    for key in range(10):
        (proposal,) = proposals_of(
            proposer, context([0, 2, 1], sampling=sampling, key=key), vocab_size=V
        )
        q, drafted = proposal.draft_probs, draft_ids(proposal)
        assert q is not None
        logits = chain_distributions(distribution, (0, 2, 1), drafted)[:, :V]
        narrow = sampling.warp(logits)
        torch.testing.assert_close(q[:, :width], narrow)
        assert torch.count_nonzero(q[:, width:]) == 0
        assert q.shape == (GAMMA, V)
        assert max(drafted) < min(width, V)


def test_a_token_that_the_draft_lacks_is_no_reason_to_fail() -> None:
    """The verifier's padding has logits, too: rarely, but at any temperature, it is drawn."""
    model = tiny_model("llama")
    draft = HFCausalLM(noisy_copy(model))
    proposer = DraftModel(draft, Chain(GAMMA))
    (proposal,) = proposals_of(proposer, context([5, 6, draft.vocab_size + 1]), vocab_size=64)
    assert draft_ids(proposal) == [] or max(draft_ids(proposal)) < draft.vocab_size


@pytest.mark.parametrize("temperature", [-1.0, "1", float("nan"), True])
def test_a_bad_temperature_is_named(temperature: Any) -> None:
    with pytest.raises(UserError) as caught:
        DraftModel(table_lm(Q, V), Chain(GAMMA), temperature)
    assert str(caught.value) == f"temperature={temperature!r}: expected a number >= 0"


def test_the_temperature_shapes_trees_of_the_likeliest() -> None:
    """A cold draft is sure of one path; of a hot one all tokens are as good."""
    depths: dict[float, int] = {}
    for temperature in (0.02, 50.0):
        proposer = DraftModel(table_lm(Q, V), Dynamic(4, 4, 4), temperature)
        (proposal,) = proposals_of(proposer, context(TEXT), vocab_size=V)
        depths[temperature] = max(proposal.tree.depths)
    assert depths == {0.02: 4, 50.0: 1}
