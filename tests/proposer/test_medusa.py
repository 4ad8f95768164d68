"""Medusa's proposals: the states are the right ones, and so are the ranks."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Proposal
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.heads.base import Unembed
from specdec.lm.hf import HFCausalLM
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.proposer.none import NoProposer
from specdec.tree.best_first import BestFirst
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.support.families import random_ids, tiny_model
from tests.support.toy import is_path

K = 3
PATHS = [[0, 0, 0], [1, 0], [0, 2], [2]]


def random_heads(model: Any, seed: int = 0, **options: Any) -> MedusaHeads:
    """Heads that say something else each, and now and then what the verifier says."""
    weight = model.get_output_embeddings().weight
    heads = MedusaHeads(weight.shape[1], weight.shape[0], K, **options)
    heads.start_from(weight)
    generator = torch.Generator().manual_seed(seed)
    for block in heads.blocks.parameters():
        block.data.copy_(0.3 * torch.randn(block.shape, generator=generator))
    for block in () if heads.correction is None else heads.correction.parameters():
        block.data.copy_(0.5 * torch.randn(block.shape, generator=generator))
    return heads


def distributions_of(
    heads: MedusaHeads, hidden: torch.Tensor, unembed: Unembed
) -> torch.Tensor:  # [K, V]
    states, none = heads.states(hidden, torch.zeros(K, 0)), torch.tensor(0)
    return torch.stack([heads.logits(i, state, none, unembed) for i, state in enumerate(states)])


class Checked(Medusa):
    """Compares each proposal with heads on states that the stock model computes afresh."""

    num_checked = 0

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        proposals = super().propose(contexts)
        for one, proposal in zip(contexts, proposals, strict=True):
            if len(one.token_ids) > 1 and one.max_depth > 0:
                self.compare(one, proposal.tree)
        return proposals

    def compare(self, one: Context, tree: CandidateTree) -> None:
        model: Any = self.verifier.model
        assert isinstance(self.heads, MedusaHeads)
        states = model.base_model(torch.tensor([list(one.token_ids[:-1])])).last_hidden_state
        distributions = distributions_of(self.heads, states[0, -1], model.get_output_embeddings())
        paths = [path for path in PATHS if len(path) <= one.max_depth]
        for path in paths:
            tokens = [
                int(distribution.topk(9).indices[rank])
                for distribution, rank in zip(distributions, path, strict=False)
            ]
            node = 0
            for token in tokens:
                children = [c for c in tree.children[node] if tree.token_ids[c] == token]
                assert children, f"after {len(one.token_ids)} tokens: no {path} in the tree"
                node = children[0]
            self.num_checked += 1


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_heads_read_the_state_below_the_last_token(
    family: str, batch: int, temperature: float
) -> None:
    """Through prefill, accepted paths and ragged batches; and at T=0 the text is unchanged."""
    model = tiny_model(family)
    lm = HFCausalLM(model)
    proposer = Checked(random_heads(model), lm, Sparse(PATHS))
    prompts = [random_ids(num, seed=num) for num in (1, 4, 9, 13)]
    requests = [Request(str(number), prompt) for number, prompt in enumerate(prompts)]
    options = {"sampling": Sampling(temperature), "stopping": Stopping(12), "batch": batch}
    traces = SpeculativeDecoder(lm, proposer, Rejection(), **options).decode(requests)
    assert proposer.num_checked > 50
    if temperature == 0:
        plain = SpeculativeDecoder(lm, NoProposer(), Rejection(), **options).decode(requests)
        assert [t.output_ids for t in traces] == [t.output_ids for t in plain]


def test_sampled_chains_carry_the_heads_distributions() -> None:
    """With `tree=chain` the tokens are drawn, and q is each head's, sampled as the text is."""
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    heads = random_heads(model)
    sampling = Sampling(0.7, top_k=5)
    seen: list[Proposal] = []

    class Noted(Medusa):
        def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
            proposals = super().propose(contexts)
            for one, proposal in zip(contexts, proposals, strict=True):
                if proposal.draft_probs is None:
                    assert one.max_depth == 0
                    continue
                distributions = distributions_of(heads, one.features["final"][-1], lm.unembed)
                distributions = distributions[: len(proposal.draft_probs)]
                torch.testing.assert_close(proposal.draft_probs, sampling.warp(distributions))
                path = tuple(range(1, 1 + proposal.tree.num_draft_tokens))
                assert is_path(proposal.tree, path)
            seen.extend(proposals)
            return proposals

    decoder = SpeculativeDecoder(lm, Noted(heads, lm, Chain(2)), Rejection(), sampling, Stopping(9))
    decoder.decode([Request("a", random_ids(5, seed=1))])
    assert len(seen) > 3


def below_node(tree: CandidateTree) -> list[list[int]]:
    """The tokens of each node's children."""
    return [[tree.token_ids[child] for child in children] for children in tree.children]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("draw", ["iid", "without_replacement"])
def test_sampled_trees_share_the_distributions_of_their_levels(draw: str, batch: int) -> None:
    """Each node's row is the distribution of the head at its depth, as the text is sampled."""
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    heads = random_heads(model)
    sampling = Sampling(0.9, top_k=9)
    sizes: set[int] = set()

    class Noted(Medusa):
        def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
            proposals = super().propose(contexts)
            for one, proposal in zip(contexts, proposals, strict=True):
                distributions = sampling.warp(
                    distributions_of(heads, one.features["final"][-1], lm.unembed)
                )
                for node, tokens in enumerate(below_node(proposal.tree)):
                    if tokens:
                        assert proposal.draft_probs is not None
                        distribution = distributions[proposal.tree.depths[node]]
                        torch.testing.assert_close(proposal.draft_probs[node], distribution)
                        assert all(distribution[token] > 0 for token in tokens)
                        assert draw == "iid" or len(set(tokens)) == len(tokens)
                sizes.add(proposal.tree.num_draft_tokens)
            return proposals

    proposer = Noted(heads, lm, Sampled([3, 2, 1], draw))
    decoder = SpeculativeDecoder(lm, proposer, Rejection(), sampling, Stopping(9), batch)
    decoder.decode([Request(str(n), random_ids(n, seed=n)) for n in (5, 3, 8)])
    assert max(sizes) == 3 + 6 + 6


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("tree", [Dynamic(9, K, 9), BestFirst(9, K)], ids=["beams", "best first"])
def test_a_tree_is_the_best_by_the_products_of_the_heads(
    tree: Dynamic | BestFirst, temperature: float, batch: int
) -> None:
    """Against all paths of the likeliest tokens, scored by hand; and greedy text is unchanged."""
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    heads = random_heads(model)
    num_checked = 0

    class Scored(Medusa):
        def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
            nonlocal num_checked
            proposals = super().propose(contexts)
            for one, proposal in zip(contexts, proposals, strict=True):
                if one.max_depth == 0:
                    continue
                ranked_at = temperature if temperature and isinstance(tree, BestFirst) else 1.0
                logits = distributions_of(heads, one.features["final"][-1], lm.unembed)
                distributions = Sampling(ranked_at).warp(logits)
                scores, level = list[float](), torch.ones(1)
                for distribution in distributions[: one.max_depth]:
                    level = (
                        (level[:, None] * distribution).flatten().sort(descending=True).values[:200]
                    )
                    scores += level.tolist()
                grown, found = proposal.tree, [1.0]
                for node in range(1, len(grown.parents)):
                    distribution = distributions[grown.depths[node] - 1]
                    found.append(
                        found[grown.parents[node]] * float(distribution[grown.token_ids[node]])
                    )
                best = sorted(scores, reverse=True)[:9]
                assert sorted(found[1:], reverse=True) == pytest.approx(best, rel=1e-4)
                num_checked += 1
            return proposals

    requests = [Request(str(n), random_ids(n, seed=n)) for n in (5, 3, 8)]
    sampling = Sampling(temperature)
    options: dict[str, Any] = {"sampling": sampling, "stopping": Stopping(9), "batch": batch}
    proposer = Scored(heads, lm, tree)
    traces = SpeculativeDecoder(lm, proposer, Rejection(), **options).decode(requests)
    assert num_checked > 15
    if temperature == 0:
        plain = SpeculativeDecoder(lm, NoProposer(), Rejection(), **options).decode(requests)
        assert [t.output_ids for t in traces] == [t.output_ids for t in plain]


def test_a_tree_deeper_than_the_heads_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="4 levels, but there are 3 heads"):
        Medusa(random_heads(model), HFCausalLM(model), Chain(4))
