"""Positional acceptance: right at a node, exactly; and of the right distributions along a text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.calibration import positional_acceptance as positional
from specdec.calibration.positional_acceptance import (
    PieceSource,
    PositionalMeter,
    ScoredPositions,
    draft_pieces,
    drawn_acceptance,
    head_pieces,
)
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal
from specdec.lm.hf import HFCausalLM
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.proposer.medusa import MedusaHeads
from specdec.training.objective import Batch
from specdec.verification.rejection import Rejection
from tests.support.families import VOCAB_SIZE, plain_logits, random_ids, tiny_model
from tests.support.reading import KINDS, K, heads_of, noisy, texts
from tests.support.toy import EnumeratedStream

# --- At a node ---


def accepted_child(p: Tensor, q: Tensor, num_children: int, stream: BranchingStream) -> int:
    """Draw children one by one and let the rule decide; the accepted one's number, or -1."""
    left, tokens = q.clone(), list[int]()
    for _ in range(num_children):
        if left.sum() > 0:
            tokens.append(stream.choose(left))
            left[tokens[-1]] = 0.0
    tree = CandidateTree((0, *tokens), (-1, *[0] * len(tokens)))
    proposal = Proposal(tree, Draw.WITHOUT_REPLACEMENT, q[None])
    verdict = Rejection().verify(proposal, p.expand(len(tokens) + 1, -1), stream)
    return verdict.path[0] - 1 if verdict.path else -1


CELLS = 12  # q and what is left of it after each draw below are multiples of 1 / 12
NODES = {
    "soft": ([0.5, 0.2, 0.3], [0.25, 0.5, 0.25]),
    "peaked": ([0.05, 0.9, 0.05], [0.25, 0.25, 0.5]),
    "equal": ([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]),
    "disjoint": ([0.0, 0.0, 1.0], [0.5, 0.5, 0.0]),
    "narrow q": ([0.4, 0.3, 0.3], [0.0, 1.0, 0.0]),
    "greedy p": ([0.0, 1.0, 0.0], [0.25, 0.25, 0.5]),
}


@pytest.mark.parametrize(
    ("num_children", "name"),
    [*((num, name) for num in (1, 2) for name in NODES), (3, "soft")],
)
def test_the_mean_is_the_probability_that_the_child_is_the_accepted_one(
    num_children: int, name: str
) -> None:
    """Over all draws, by enumeration, against the rule's own decisions, by enumeration."""
    p, q = (torch.tensor(row, dtype=torch.float64) for row in NODES[name])
    distribution = outcomes(lambda stream: accepted_child(p, q, num_children, stream))

    def measured(stream: BranchingStream) -> tuple[float, ...]:
        uniforms: list[Any] = [EnumeratedStream(stream, CELLS)]
        return tuple(drawn_acceptance(p[None], q[None], num_children, uniforms)[0].tolist())

    means = [0.0] * num_children
    for values, probability in outcomes(measured).items():
        means = [mean + probability * each for mean, each in zip(means, values, strict=True)]
    assert means == pytest.approx(
        [distribution.get(c, 0.0) for c in range(num_children)], abs=1e-12
    )


def test_the_first_child_is_measured_without_noise() -> None:
    """It is accepted with probability sum min(p, q), whatever is drawn."""
    p, q = torch.rand(2, 5, 30, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    for seed in range(3):
        found = drawn_acceptance(p, q, 4, [RandomStream(seed, row) for row in range(5)])
        torch.testing.assert_close(found[:, 0], p.minimum(q).sum(dim=-1))


def test_a_draft_that_is_its_verifier_needs_no_second_child() -> None:
    """And rounding gives no number that is no probability."""
    p = (9 * torch.randn(500, 60, generator=torch.Generator().manual_seed(1))).softmax(dim=-1)
    found = drawn_acceptance(p, p.clone(), 3, [RandomStream(row) for row in range(500)])
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(
        found, torch.tensor([[1.0, 0.0, 0.0]]).expand(500, -1), atol=1e-5, rtol=0
    )


# --- Along a text ---

Found = dict[tuple[int, int, int], tuple[Tensor, Tensor]]  # (row, position, depth) -> p and q


@pytest.fixture(scope="module")
def verifier() -> HFCausalLM:
    return HFCausalLM(tiny_model("llama"))


def collected(pieces: Iterator[ScoredPositions], batch: Batch) -> Found:
    length = batch.token_ids.shape[1]
    return {
        (at // length, at % length, piece.depth): (target, draft)
        for piece in pieces
        for at, target, draft in zip(
            piece.positions.tolist(), piece.verifier_logits, piece.draft_logits, strict=True
        )
    }


def assert_same_distributions(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for key, pair in expected.items():
        for ours, theirs in zip(found[key], pair, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def cut(logits: Tensor, width: int) -> Tensor:
    """Cut or widen, as the verifier's vocabulary is."""
    return torch.nn.functional.pad(logits, (0, width - len(logits)), value=float("-inf"))


@pytest.mark.parametrize("draft_size", [VOCAB_SIZE, VOCAB_SIZE - 3, VOCAB_SIZE + 3])
@torch.inference_mode()
def test_a_draft_is_compared_wherever_a_token_counts(
    verifier: HFCausalLM, draft_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against plain forwards, token by token; with padded vocabularies and in small pieces."""
    draft = HFCausalLM(tiny_model("llama", seed=1, vocab_size=draft_size))
    batch = texts()
    expected: Found = {}
    for row, (token_ids, counted) in enumerate(zip(batch.token_ids, batch.counted, strict=True)):
        for t in range(len(token_ids) - 1):
            if counted[t + 1]:
                before = token_ids[: t + 1].tolist()
                read = [token if token < draft_size else 0 for token in before]
                q = cut(plain_logits(draft.model, read)[-1], VOCAB_SIZE)
                expected[row, t, 0] = (plain_logits(verifier.model, before)[-1], q)
    assert len(expected) > 15
    assert_same_distributions(collected(draft_pieces(draft, verifier)(batch), batch), expected)
    monkeypatch.setattr(positional, "LOGITS_AT_ONCE", 4 * VOCAB_SIZE)
    assert_same_distributions(collected(draft_pieces(draft, verifier)(batch), batch), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, K])
@torch.inference_mode()
def test_heads_are_compared_at_their_own_depths(
    verifier: HFCausalLM, kind: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each head after the true tokens, with the verifier's distribution of the very same token."""
    heads, batch = heads_of(kind, verifier), texts()
    expected: Found = {}
    for row, (token_ids, counted) in enumerate(zip(batch.token_ids, batch.counted, strict=True)):
        for t in range(len(token_ids) - 1 - depth):
            if not counted[t + 2 : t + 2 + depth].all():
                continue
            hidden = verifier.model.base_model(token_ids[None, : t + 1]).last_hidden_state
            read = (hidden if heads.prefix is None else heads.prefix(hidden))[0, -1]
            state = read
            for head in range(depth):
                known = verifier.embed(token_ids[t + 1 : t + 2 + head])
                state = heads.step(head, read, known, state)
                p = plain_logits(verifier.model, token_ids[: t + 2 + head].tolist())[-1]
                before = token_ids[t + 1 + head]
                q = heads.logits(head, state, before, verifier.unembed)
                expected[row, t, head] = (p, q)
    assert len(expected) > 5 * depth
    pieces = head_pieces(heads, verifier, depth)
    assert_same_distributions(collected(pieces(batch), batch), expected)
    monkeypatch.setattr(positional, "LOGITS_AT_ONCE", 4 * VOCAB_SIZE)
    assert_same_distributions(collected(pieces(batch), batch), expected)


@pytest.mark.parametrize("more", [-3, 3])
def test_heads_of_another_verifier_are_compared_on_its_tokens(
    verifier: HFCausalLM, more: int
) -> None:
    heads = MedusaHeads(verifier.state_size, VOCAB_SIZE + more, K)
    for piece in head_pieces(heads, verifier, K)(texts()):
        assert piece.draft_logits.shape == piece.verifier_logits.shape
        q = piece.draft_logits.softmax(dim=-1)
        assert bool((q[:, VOCAB_SIZE + more :] == 0).all())


@pytest.fixture
def meter(verifier: HFCausalLM) -> PositionalMeter:
    return PositionalMeter(draft_pieces(noisy(), verifier), 1, Sampling(0.8, top_k=9), None, 4, 5)


def rows_of(batch: Batch) -> list[Batch]:
    return list(replace(batch, places=tuple(range(len(batch.token_ids)))).rows())


def test_rows_may_be_read_together_or_alone(meter: PositionalMeter) -> None:
    """Noise belongs to a position: neither batches nor pieces change a draw."""
    batch = texts()
    together = meter.of(batch)
    alone = [meter.of(one) for one in rows_of(batch)]
    total = sum(alone, start=meter.nothing())
    assert total.num_positions == together.num_positions > 15
    torch.testing.assert_close(total.sums, together.sums, atol=1e-4, rtol=0)
    other = replace(meter, seed=6).of(batch)
    assert torch.equal(other.sums[:, 0], together.sums[:, 0])
    assert not torch.allclose(other.sums, together.sums)


@torch.inference_mode()
def test_the_distribution_is_the_one_that_decoding_samples_with(meter: PositionalMeter) -> None:
    """Temperature, filters, and a temperature of the draft's own."""
    batch = texts()
    for temperature in (None, 2.0):  # both are other distributions than those at temperature 1
        own = replace(meter, temperature=temperature, max_children=1)
        total = 0.0
        for piece in own.pieces(batch):
            p = own.sampling.warp(piece.verifier_logits)
            q = Sampling(temperature or 0.8, top_k=9).warp(piece.draft_logits)
            total += float(p.minimum(q).sum())
        assert float(own.of(batch).sums[0, 0]) == pytest.approx(total, rel=1e-5)


def test_more_children_than_tokens_are_never_accepted(verifier: HFCausalLM) -> None:
    """A distribution of two tokens has no third child."""
    sampling = Sampling(1.0, top_k=2)
    meter = PositionalMeter(draft_pieces(noisy(), verifier), 1, sampling, None, VOCAB_SIZE + 9, 0)
    (acceptance,) = meter.of(texts()).acceptance()
    assert len(acceptance) == VOCAB_SIZE + 9
    assert min(acceptance[:2]) > 0
    assert max(acceptance[2:]) == 0


@pytest.mark.parametrize("name", ["draft_model", "chained"])
def test_a_text_in_which_nothing_counts_has_no_positions(verifier: HFCausalLM, name: str) -> None:
    batch = Batch(torch.ones(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.bool))
    heads = heads_of("both prefix", verifier)
    source: dict[str, Callable[[], PieceSource]] = {
        "draft_model": lambda: draft_pieces(noisy(), verifier),
        "chained": lambda: head_pieces(heads, verifier, K),
    }
    found = PositionalMeter(source[name](), K, Sampling(), None, 4, 0).of(batch)
    assert found.num_positions == 0
    assert found.sums.tolist() == [[0.0] * 4] * K


def test_acceptance_is_a_mean_over_positions(meter: PositionalMeter) -> None:
    """Of all that count: all but the first of the text."""
    text: Sequence[int] = random_ids(60, seed=2)
    found = meter.of(Batch.of(torch.tensor([text])))
    assert found.num_positions == 59
    (acceptance,) = found.acceptance()
    assert acceptance == pytest.approx((found.sums[0] / 59).tolist())
    assert all(0 < p < 1 for p in acceptance)
