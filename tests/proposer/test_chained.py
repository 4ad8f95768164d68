"""Chained heads' proposals: each level's distributions are those after the tokens above it."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.protocols import TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.values import Context, Draw, Proposal
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.proposer.chained import Chained, ChainedHeads
from specdec.proposer.none import NoProposer
from specdec.tree.best_first import BestFirst
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.support.families import random_ids, tiny_model

K = 3
PATHS = [[0, 0, 0], [1, 0], [0, 2], [2]]
TREES: dict[str, TreePolicy] = {
    "tree": Sparse(PATHS),
    "chain": Chain(K),
    "sampled": Sampled([2, 1, 2], "without_replacement"),
    "dynamic": Dynamic(8, K, 4),
    "best first": BestFirst(8, K),
    "dynamic sure": Dynamic(8, K, 4, min_confidence=0.1),
}
KINDS: dict[str, dict[str, Any]] = {
    "token": {"link": "token"},
    "hidden": {"link": "hidden"},
    "both": {"link": "both", "num_layers": 2},
    "token prefix": {"link": "token", "prefix_attention": True},
    "both prefix": {"link": "both", "prefix_attention": True, "own_vocabulary_head": False},
}


def random_heads(model: Any, kind: str) -> ChainedHeads:
    """Heads that say something else each, whatever they read."""
    weight = model.get_output_embeddings().weight
    heads = ChainedHeads(weight.shape[1], weight.shape[0], K, **KINDS[kind])
    heads.start_from(weight)
    generator = torch.Generator().manual_seed(3)
    for parameter in heads.parameters():
        if parameter.ndim > 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return heads


def distribution(heads: ChainedHeads, model: Any, text: list[int], head: int) -> Tensor:
    """The logits [V] of head `head` for the token after `text`, everything computed afresh."""
    t = len(text) - head - 2
    hidden = model.base_model(torch.tensor([text[: t + 1]])).last_hidden_state
    hidden = hidden if heads.prefix is None else heads.prefix(hidden)
    embeddings = model.get_input_embeddings()(torch.tensor(text[t + 1 :] + [0] * (K - head - 1)))
    state = heads.states(hidden[0, -1], embeddings)[head]
    return heads.logits(head, state, torch.tensor(text[-1]), model.get_output_embeddings())


class Checked(Chained):
    """Compares each proposal with distributions that the stock model and the heads give afresh."""

    num_checked = 0

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        proposals = super().propose(contexts)
        for one, proposal in zip(contexts, proposals, strict=True):
            if len(one.token_ids) > 1 and one.max_depth > 0:
                self.compare(one, proposal)
        return proposals

    def compare(self, one: Context, proposal: Proposal) -> None:
        tree = proposal.tree
        for node, children in enumerate(tree.children):
            if not children:
                continue
            above, walker = list[int](), node
            while walker > 0:
                above, walker = [tree.token_ids[walker], *above], tree.parents[walker]
            text = [*one.token_ids, *above]
            assert isinstance(self.heads, ChainedHeads)
            logits = distribution(self.heads, self.verifier.model, text, len(above))
            if proposal.draft_probs is not None:
                expected = one.sampling.warp(logits)
                torch.testing.assert_close(
                    proposal.draft_probs[node], expected, rtol=1e-3, atol=1e-4
                )
            else:
                ranks = range(len(children))
                if isinstance(self.tree, Sparse):
                    ranks = sorted({path[len(above)] for path in self.paths_after(tree, node)})
                best = logits.topk(9).indices[list(ranks)].tolist()
                assert [tree.token_ids[child] for child in children] == best
            self.num_checked += 1

    def paths_after(self, tree: Any, node: int) -> list[list[int]]:
        """The rank paths through a node, which Sparse numbers level by level."""
        prefixes = sorted(
            {tuple(p[:d]) for p in PATHS for d in range(4)}, key=lambda p: (len(p), p)
        )
        here = prefixes[node]
        return [p for p in PATHS if tuple(p[: len(here)]) == here and len(p) > len(here)]


# All trees, and the two simplest ones in all circumstances.
LONG = [
    *product(["llama"], [1], ["tree", "chain"]),
    *product(["gemma3_text"], [1, 3], ["tree", "chain"]),
]
CIRCUMSTANCES = [
    *product(["llama"], [3], TREES),
    *(pytest.param(*each, marks=pytest.mark.thorough) for each in LONG),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "batch", "shape"), CIRCUMSTANCES)
def test_every_node_has_the_distribution_of_its_path(
    kind: str, family: str, batch: int, shape: str
) -> None:
    """Through prefill, accepted paths and ragged batches; and greedy text is unchanged."""
    model = tiny_model(family)
    lm = HFCausalLM(model)
    tree = TREES[shape]
    sampled = tree.draw is not Draw.DETERMINISTIC
    proposer = Checked(random_heads(model, kind), lm, tree)
    prompts = [random_ids(num, seed=num) for num in (1, 4, 9, 13)]
    requests = [Request(str(number), prompt) for number, prompt in enumerate(prompts)]
    sampling = Sampling(0.8, top_k=7) if sampled else Sampling(0)
    options: dict[str, Any] = {"sampling": sampling, "stopping": Stopping(8), "batch": batch}
    traces = SpeculativeDecoder(lm, proposer, Rejection(), **options).decode(requests)
    assert proposer.num_checked > 30
    if not sampled:
        plain = SpeculativeDecoder(lm, NoProposer(), Rejection(), **options).decode(requests)
        assert [t.output_ids for t in traces] == [t.output_ids for t in plain]


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.layer.CHUNK", 5)
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    proposer = Checked(random_heads(model, "both prefix"), lm, Sparse(PATHS))
    requests = [Request(str(num), random_ids(num, seed=num)) for num in (3, 12, 17)]
    decoder = SpeculativeDecoder(lm, proposer, Rejection(), Sampling(0), Stopping(6), batch=3)
    decoder.decode(requests)
    assert proposer.num_checked > 10
