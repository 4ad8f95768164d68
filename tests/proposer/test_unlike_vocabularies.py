"""Drafts with fewer tokens than their verifier, or more: they read only what they can embed."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.protocols import Forward, Proposer, TreePolicy, VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.unlike_vocabularies import fitted, known
from specdec.core.values import Context, Draw, Layer, Proposal
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.heads.base import Heads
from specdec.lm.hf import HFCausalLM
from specdec.proposer.chained import Chained, ChainedHeads
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.heads import HeadsProposer
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.proposer.none import NoProposer
from specdec.proposer.recorded import Recorded
from specdec.testing.table_lm import TableLM
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.filtered import Filtered
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.top_plus_one import TopPlusOne
from tests.support.asking import context, proposals_of
from tests.support.families import random_ids, tiny_model
from tests.support.toy import Conditional, full_context, mixture, table_lm

V = 7  # the verifier's
SURE = 0.45  # about every second distribution of a draft is surer
TREES: dict[str, TreePolicy] = {
    "chain": Chain(4),
    "chain that may stop": Chain(4, SURE),
    "filtered": Filtered(4, min_prob=0.2, top_k=2),
    "filtered that may stop": Filtered(4, min_prob=0.2, min_confidence=SURE),
    "iid": Sampled([2, 2, 1], "iid", SURE),
    "without replacement": Sampled([5, 2, 1], "without_replacement"),
    "without replacement that may stop": Sampled([3, 2, 1], "without_replacement", SURE),
    "top plus one": Sampled([4, 2, 1], "top_plus_one"),
    "dynamic": Dynamic(12, 3, 6),
    "dynamic that may stop": Dynamic(12, 3, 6, min_confidence=SURE),
    "sparse": Sparse([[0, 0, 0], [1, 0], [0, 2], [2]], SURE),
}
# Little of a draft's distribution is left: children that have no token hold places in the tree.
SAMPLINGS = [Sampling(), Sampling(0.7, top_k=2), Sampling(0)]
SIZES = [4, 10]
each_tree = pytest.mark.parametrize("tree", TREES)
each_size = pytest.mark.parametrize("size", SIZES)


class Embedding(TableLM):
    """A table that can read no other tokens than its own, as any model."""

    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        self._look_up(token_ids)
        return super().forward(rows, token_ids, positions, attend, layers)

    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        for ids in token_ids:
            self._look_up(torch.tensor(list(ids)))
        return super().prefill(rows, token_ids, layers)

    def _look_up(self, token_ids: Tensor) -> None:
        if token_ids.numel() and int(token_ids.max()) >= self.vocab_size:
            raise IndexError("index out of range in self")


@cache
def distribution_of(size: int) -> Conditional:
    return full_context(seed=size, concentration=0.4, vocab_size=size)


def drafting(tree: str, size: int) -> DraftModel:
    distribution = distribution_of(size)
    return DraftModel(Embedding(lambda tokens: distribution(tokens).log(), size), TREES[tree])


def batch_of(sampling: Sampling, key: int) -> list[Context]:
    texts = [(0, key % 4, 1), (2, 1), (3, 3, key % 3, 2, 1)]  # which every draft can read
    return [
        context(text, row=row, sampling=sampling, key=key, budget=9 if row else 3)
        for row, text in enumerate(texts)
    ]


def path_to(proposal: Proposal, node: int) -> tuple[int, ...]:
    tree, tokens = proposal.tree, list[int]()
    while node > 0:
        tokens.insert(0, tree.token_ids[node])
        node = tree.parents[node]
    return tuple(tokens)


@each_tree
@each_size
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_candidates_are_those_of_the_distribution_that_is_handed_on(
    tree: str, size: int, sampling: Sampling
) -> None:
    """Rows that stop, and children that are not there, change nothing at their neighbours."""
    distribution, num_nodes = distribution_of(size), 0
    for key in range(5):
        rows = batch_of(sampling, key)
        proposals = proposals_of(drafting(tree, size), *rows, vocab_size=V)
        for one, proposal in zip(rows, proposals, strict=True):
            text, q = tuple(one.token_ids), proposal.draft_probs
            num_nodes += proposal.tree.num_draft_tokens
            for node, parent in enumerate(proposal.tree.parents[1:], start=1):
                token = proposal.tree.token_ids[node]
                read = known(torch.tensor(text + path_to(proposal, parent)), size)
                logits = fitted(distribution(tuple(read.tolist())).log()[:V], V)
                expected = sampling.warp(logits)
                assert token < V
                if q is None:
                    continue
                if not tree.startswith("filtered"):  # whose distribution lacks what does not pass
                    torch.testing.assert_close(q[parent], expected)
                elif token < size:
                    torch.testing.assert_close(q[parent, token], expected[token])
                assert tree == "top plus one" or q[parent, token] > 0
    assert num_nodes > 4, "this tree proposes nothing, so nothing was tried"


def greedy_texts(proposer: Proposer, size: int) -> list[Sequence[int]]:
    verifier = mixture(full_context(seed=1, vocab_size=V), lambda t: padded(size, t), 0.3)
    decoder = SpeculativeDecoder(
        table_lm(verifier, V), proposer, Match(), Sampling(0), Stopping(12), batch=3
    )
    requests = [Request(str(row), [row % V] * (1 + row % 3)) for row in range(7)]
    return [trace.output_ids for trace in decoder.decode(requests)]


def padded(size: int, tokens: tuple[int, ...]) -> Tensor:
    """The draft's own distribution, so that many of its tokens are accepted."""
    read = tuple(token if token < size else 0 for token in tokens)
    probs = distribution_of(size)(read)[:V]
    return torch.nn.functional.pad(probs / probs.sum(), (0, V - len(probs)))


def rule_for(proposer: Proposer) -> VerificationRule:
    return TopPlusOne() if proposer.draw is Draw.TOP_PLUS_ONE else Rejection()


@each_tree
@each_size
def test_the_text_at_temperature_zero_is_the_verifier_s(tree: str, size: int) -> None:
    """Also behind tokens that the draft lacks: the verifier writes them all the time."""
    assert greedy_texts(drafting(tree, size), size) == greedy_texts(NoProposer(), size)


@each_tree
@pytest.mark.parametrize("vocab_size", [40, 70])
def test_real_models_of_unlike_vocabularies(tree: str, vocab_size: int) -> None:
    """The same with embeddings, which end where their tokens end."""
    verifier = HFCausalLM(tiny_model("llama"))
    draft = HFCausalLM(tiny_model("llama", seed=1, vocab_size=vocab_size))
    proposer = DraftModel(draft, TREES[tree])
    requests = [Request(str(num), random_ids(num, seed=num)) for num in (3, 9, 5)]
    for sampling in (Sampling(0), Sampling(0.8, top_k=2)):
        found = SpeculativeDecoder(
            verifier, proposer, Match() if sampling.temperature == 0 else rule_for(proposer),
            sampling, Stopping(10), batch=3,
        ).decode(requests)  # fmt: skip
        assert all(len(trace.output_ids) == 10 for trace in found)
        if sampling.temperature == 0:
            plain = SpeculativeDecoder(
                verifier, NoProposer(), Match(), sampling, Stopping(10), batch=3
            ).decode(requests)
            assert [t.output_ids for t in found] == [t.output_ids for t in plain]


HEADS: dict[str, tuple[type[Heads], type[HeadsProposer]]] = {
    "medusa": (MedusaHeads, Medusa),
    "chained": (ChainedHeads, Chained),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("vocab_size", [40, 70])
def test_heads_of_another_vocabulary(kind: str, vocab_size: int) -> None:
    """Only by `proposer.force`; the text is the verifier's all the same, and q as wide as p."""
    heads_of, proposer_of = HEADS[kind]
    lm = HFCausalLM(tiny_model("llama"))
    make: Any = heads_of
    heads = make(lm.state_size, vocab_size, 2)
    heads.start_from(torch.randn(vocab_size, 32, generator=torch.Generator().manual_seed(0)))
    requests = [Request(str(num), random_ids(num, seed=num)) for num in (3, 9, 5)]

    def run(proposer: Proposer, sampling: Sampling) -> list[Sequence[int]]:
        decoder = SpeculativeDecoder(lm, proposer, Rejection(), sampling, Stopping(10), batch=3)
        return [trace.output_ids for trace in decoder.decode(requests)]

    proposer = proposer_of(heads, lm, Chain(2))
    assert run(proposer, Sampling(0)) == run(NoProposer(), Sampling(0))
    assert len(run(proposer, Sampling(0.9))) == 3


def test_heads_for_wider_states_are_refused() -> None:
    lm = HFCausalLM(tiny_model("llama"))
    with pytest.raises(UserError, match=r"^heads\.hidden_size=48: expected heads for states of 32"):
        Medusa(MedusaHeads(48, 61, 2), lm, Chain(2))


def test_a_recording_of_more_tokens_is_copied_as_far_as_they_are_known() -> None:
    one = Recorded({"request-0": [5, 3, V + 2, 1]}, gamma=4)
    (proposal,) = proposals_of(one, context([1, 2], num_prompt_tokens=2), vocab_size=V)
    assert proposal.tree.token_ids == (2, 5, 3)
