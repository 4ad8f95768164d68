"""Ranks along a text: those of a loop over its tokens, and those that the engine accepts by."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from specdec.calibration import ranks as replay
from specdec.calibration.ranks import Ranker, draft_ranks, head_ranks
from specdec.core.ordering import ranks_of
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.proposer.chained import Chained
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.training.objective import Batch
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.support.families import VOCAB_SIZE, random_ids, tiny_model
from tests.support.reading import KINDS, K, heads_of, noisy, texts

each_kind = pytest.mark.parametrize("kind", KINDS)
each_depth = pytest.mark.parametrize("depth", [1, K])


@pytest.fixture(scope="module")
def verifier() -> HFCausalLM:
    return HFCausalLM(tiny_model("llama"))


@pytest.fixture(scope="module")
def draft() -> HFCausalLM:
    """The verifier with noise on its weights, so that ranks are small but not all zero."""
    return noisy()


def by_hand(batch: Batch, depth: int, distribution: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """One position after another; `distribution` sees only the true tokens before each token."""
    rows: list[list[int]] = []
    for token_ids, counted in zip(batch.token_ids, batch.counted, strict=True):
        for t in range(len(token_ids)):
            targets = range(t + 2, t + 2 + depth)
            if targets[-1] < len(token_ids) and all(counted[target] for target in targets):
                orders = [
                    distribution(token_ids[:target], t, head).argsort(descending=True, stable=True)
                    for head, target in enumerate(targets)
                ]
                found = zip(orders, targets, strict=True)
                rows.append([order.tolist().index(int(token_ids[at])) for order, at in found])
    return torch.tensor(rows)


@each_kind
@each_depth
@torch.no_grad()
def test_ranks_of_heads(
    verifier: HFCausalLM, kind: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = heads_of(kind, verifier)

    def distribution(before: Tensor, t: int, head: int) -> Tensor:
        hidden = verifier.model.base_model(before[None, : t + 1]).last_hidden_state
        read = (hidden if heads.prefix is None else heads.prefix(hidden))[0, -1]
        state = read
        for number in range(head + 1):
            known = verifier.embed(before[t + 1 : t + 2 + number])
            state = heads.step(number, read, known, state)
        return heads.logits(head, state, before[t + 1 + head], verifier.unembed)

    expected = by_hand(texts(), depth, distribution)
    assert len(expected) > 5
    assert torch.equal(head_ranks(heads, verifier, depth, texts()), expected)
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 4 * VOCAB_SIZE)
    assert torch.equal(head_ranks(heads, verifier, depth, texts()), expected), "chunks differ"


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, VOCAB_SIZE - 3])
@torch.no_grad()
def test_ranks_of_a_draft_model(
    draft: HFCausalLM, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding logits of a draft that is wider than its verifier are no competitors."""
    batch = texts()
    batch = Batch(batch.token_ids.clamp(max=vocab_size - 1), batch.counted)

    def distribution(before: Tensor, t: int, head: int) -> Tensor:
        return draft.model(before[None]).logits[0, -1, :vocab_size]

    expected = by_hand(batch, 4, distribution)
    assert len(expected) > 5
    assert torch.equal(draft_ranks(draft, vocab_size, 4, batch), expected)
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 4 * VOCAB_SIZE)
    assert torch.equal(draft_ranks(draft, vocab_size, 4, batch), expected), "chunks differ"


def test_a_token_that_the_draft_does_not_have_is_behind_all(draft: HFCausalLM) -> None:
    token_ids = torch.tensor([[3, 4, VOCAB_SIZE + 1, 5, 6, 7]])
    found = draft_ranks(draft, VOCAB_SIZE, 2, Batch.of(token_ids))
    assert found[0, 0] > VOCAB_SIZE
    assert (found.flatten()[1:] < VOCAB_SIZE).all()


@pytest.mark.parametrize("more", [-3, 3])
def test_heads_of_another_verifier_rank_its_tokens_alone(verifier: HFCausalLM, more: int) -> None:
    """As in decoding, which cuts what they say, or adds tokens that are impossible."""
    heads = MedusaHeads(verifier.state_size, VOCAB_SIZE + more, K)
    head = verifier.model.get_output_embeddings()
    assert head is not None
    rows = head.weight
    strange = 3 * rows[:3]  # often the first, and then the last of all
    with torch.no_grad():
        heads.start_from(torch.cat([rows, strange])[: VOCAB_SIZE + more])
    proposer = Medusa(heads.eval(), verifier, TREE)
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0.7), Stopping(60))
    prompt = random_ids(6, seed=9)
    (trace,) = decoder.decode([Request("a", prompt)])
    text = torch.tensor([[*prompt, *trace.output_ids]])
    ranks = head_ranks(heads, verifier, K, Batch.of(text)).tolist()
    t, seen = len(prompt) - 2, list[int]()
    for step in trace.steps:
        if t < len(ranks):
            seen.append(step.accepted)
            assert step.accepted == followed(ranks[t]), f"the block behind token {t + 1}"
        t += step.emitted
    assert sum(seen) > 2, "nothing was accepted: the test is blind"


def test_where_nothing_counts_there_are_no_rows(verifier: HFCausalLM, draft: HFCausalLM) -> None:
    batch = Batch(torch.ones(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.bool))
    assert head_ranks(heads_of("both prefix", verifier), verifier, K, batch).shape == (0, K)
    assert draft_ranks(draft, VOCAB_SIZE, 4, batch).shape == (0, 4)


def test_of_equal_logits_the_smaller_id_comes_first() -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, -inf], [nan, 2.0, 1.0, 0.0, -1.0]])
    rows = logits[[0, 0, 0, 0, 0, 1, 1]]
    found = ranks_of(rows, torch.tensor([0, 1, 2, 3, 4, 1, 2]))
    assert found.tolist() == [3, 0, 1, 2, 4, 1, 2]
    # A token without a number must not pass for the likeliest.
    assert ranks_of(logits[1:], torch.tensor([0])).item() >= 4


TREE = Sparse([[0, 0, 0], [0, 1], [0, 2], [1, 0, 1], [2], [3]])
NODES = {(), (0,), (1,), (2,), (3,), (0, 0), (0, 1), (0, 2), (1, 0), (0, 0, 0), (1, 0, 1)}


def followed(ranks: list[int]) -> int:
    """Return the depth of the longest path of the tree that the text followed."""
    return max(depth for depth in range(len(ranks) + 1) if tuple(ranks[:depth]) in NODES)


def arms(verifier: HFCausalLM, draft: HFCausalLM, name: str) -> tuple[Proposer, Ranker]:
    if name == "draft_model":
        return DraftModel(draft, TREE), partial(draft_ranks, draft, VOCAB_SIZE, K)
    heads = heads_of(name, verifier)
    cls = Medusa if name.startswith("medusa") else Chained
    return cls(heads, verifier, TREE), partial(head_ranks, heads, verifier, K)


@pytest.mark.parametrize("name", [*KINDS, "draft_model"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_engine_accepts_what_the_ranks_say(
    verifier: HFCausalLM, draft: HFCausalLM, name: str, temperature: float
) -> None:
    """At every step start of a decoded text: a tree's acceptance can be read off the ranks."""
    proposer, ranker = arms(verifier, draft, name)
    sampling = Sampling(temperature)
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), sampling, Stopping(60))
    prompt = random_ids(6, seed=9)
    (trace,) = decoder.decode([Request("a", prompt)])
    ranks = ranker(Batch.of(torch.tensor([[*prompt, *trace.output_ids]]))).tolist()
    t, seen = len(prompt) - 2, []
    for step in trace.steps:
        if t < len(ranks):
            seen.append(step.accepted)
            assert step.accepted == followed(ranks[t]), f"the block behind token {t + 1}"
        t += step.emitted
    assert len(seen) > 10
    assert max(seen) > 0, "nothing was accepted: the test is blind"
