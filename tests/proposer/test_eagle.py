"""The proposals of feature chains: each node's distribution is that of its path, and q is exact."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.protocols import TreePolicy, VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.values import Context, Draw, Proposal
from specdec.decoding import request as request_module
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.heads.eagle import EagleHead
from specdec.heads.rotary import rotated
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.proposer.eagle import Eagle
from specdec.proposer.none import NoProposer
from specdec.testing import check_proposer
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse
from specdec.verification.block import Block
from specdec.verification.rejection import Rejection
from specdec.verification.traversal import Traversal
from tests.support.families import random_ids, tiny_model
from tests.support.toy import (
    ChoosingChain,
    ChoosingTree,
    EnumeratedStream,
    Tokens,
    text_distribution,
    total_variation,
)

DEPTH = 4  # more than the steps that it is trained on
PATHS = [[0, 0, 0], [1, 0], [0, 2], [2], [0, 0, 0, 1]]
TREES: dict[str, TreePolicy] = {
    "tree": Sparse(PATHS),
    "chain": Chain(DEPTH),
    "sampled": Sampled([2, 1, 2], "without_replacement"),
    "dynamic": Dynamic(8, DEPTH, 4),
    "dynamic sure": Dynamic(8, 3, 4, min_confidence=0.1),
}
KINDS: dict[str, dict[str, Any]] = {
    "eagle1": {"reads": ["final"], "fusion": "project", "steps": 1},
    "eagle3": {"reads": [0, "final"], "num_attention_heads": 4, "num_key_value_heads": 2},
    "eagle3_1": {"reads": [0, "final"], "norm_features": True, "norm_output": True},
    "mtp": {"reads": ["final"], "fusion": "project", "num_attention_heads": 2},
}
FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma3_text", "mixtral", "opt", "qwen3_next"]


def random_head(model: Any, kind: str) -> EagleHead:
    """A head whose candidates are not all alike, and that nothing leaves alone."""
    weight = model.get_output_embeddings().weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        head = EagleHead(weight.shape[1], weight.shape[0], **{"steps": 2, **KINDS[kind]})
        for parameter in head.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    head.start_at(3.0)
    return head.to(weight.dtype).eval()


@torch.no_grad()
def distribution(head: EagleHead, model: Any, text: Sequence[int], num_committed: int) -> Tensor:
    """The logits [V] after a text whose end is drafted: row after row, without any cache."""
    states = model(torch.tensor([text[: num_committed - 1]]), output_hidden_states=True)
    entries = [layer + 1 if isinstance(layer, int) else -1 for layer in head.reads]
    features = torch.cat([states.hidden_states[entry] for entry in entries], dim=-1)[0]
    embeddings = model.get_input_embeddings()(torch.tensor([*text]))
    first = head.first(features, embeddings[1:num_committed])
    rows = list(first)
    for embedding in embeddings[num_committed:]:
        rows.append(head.next(last_output(head, torch.stack(rows)), embedding))
    output = last_output(head, torch.stack(rows))
    return head.projected(0, output, model.get_output_embeddings())


def last_output(head: EagleHead, rows: Tensor) -> Tensor:  # [n, 2 H] -> [H]
    """Ordinary attention of the last row over all of them, one head after another."""
    layer = head.layer
    read, added_to = layer.fused(*rows.chunk(2, dim=-1))
    size, shared = layer.head_size, layer.num_heads // layer.num_key_value_heads
    places = torch.arange(len(rows))[None]
    found: list[Tensor] = []
    for number in range(layer.num_heads):
        own = slice(number * size, (number + 1) * size)
        kept = slice(number // shared * size, (number // shared + 1) * size)
        query, key = layer.queries(read)[-1:, own], layer.keys(read)[:, kept]
        query, key = (
            rotated(each[None, None], at)[0, 0]
            for each, at in ((query, places[:, -1:]), (key, places))
        )
        weights = (query @ key.T / size**0.5).softmax(-1)
        found.append(weights @ layer.values(read)[:, kept])
    attended = torch.stack(found)[None]  # [1, heads, 1, dim]
    return layer.finished(attended, added_to[None, -1:])[0, 0]


class Checked(Eagle):
    """Compares each proposal with distributions that are computed afresh."""

    num_checked = 0

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        proposals = super().propose(contexts)
        for one, proposal in zip(contexts, proposals, strict=True):
            assert self._rows.length(one.row) == len(one.token_ids) - 1
            if len(one.token_ids) > 1 and one.max_depth > 0:
                self.compare(one, proposal)
        return proposals

    def compare(self, one: Context, proposal: Proposal) -> None:
        tree = proposal.tree
        for node, children in enumerate(tree.children):
            if not children:
                continue
            above = [tree.token_ids[each] for each in tree.path_to(node)]
            text, num_committed = [*one.token_ids, *above], len(one.token_ids)
            logits = distribution(self.heads, self.verifier.model, text, num_committed)
            if proposal.draft_probs is not None:
                expected = one.sampling.warp(logits)
                torch.testing.assert_close(
                    proposal.draft_probs[node], expected, rtol=1e-3, atol=1e-4
                )
            else:
                best = logits.topk(9).indices.tolist()
                found = [tree.token_ids[child] for child in children]
                assert set(found) <= set(best[: 3 if isinstance(self.tree, Sparse) else 9])
                assert isinstance(self.tree, Sparse) or found == best[: len(found)]
            self.num_checked += 1


LONG = [*product(FAMILIES[1:], ["eagle3"], [3], ["chain"]), *product(["llama"], KINDS, [1], TREES)]
CIRCUMSTANCES = [
    *product(["llama"], ["eagle3"], [3], TREES),
    *product(["llama"], ["eagle1", "eagle3_1", "mtp"], [3], ["chain", "dynamic"]),
    *(pytest.param(*each, marks=pytest.mark.thorough) for each in LONG),
]


@pytest.mark.parametrize(("family", "kind", "batch", "shape"), CIRCUMSTANCES)
def test_every_node_has_the_distribution_of_its_path(
    family: str, kind: str, batch: int, shape: str
) -> None:
    """Through prefill, accepted paths and ragged batches; and greedy text is unchanged."""
    model = tiny_model(family)
    lm = causal_lm(model)
    tree = TREES[shape]
    sampled = tree.draw is not Draw.DETERMINISTIC
    proposer = Checked(random_head(model, kind), lm, tree)
    prompts = [random_ids(num, seed=num) for num in (1, 4, 9, 13)]
    requests = [Request(str(number), prompt) for number, prompt in enumerate(prompts)]
    sampling = Sampling(0.8, top_k=7) if sampled else Sampling(0)
    options: dict[str, Any] = {"sampling": sampling, "stopping": Stopping(8), "batch": batch}
    traces = SpeculativeDecoder(lm, proposer, Rejection(), **options).decode(requests)
    assert proposer.num_checked > 20
    if not sampled:
        plain = SpeculativeDecoder(lm, NoProposer(), Rejection(), **options).decode(requests)
        assert [t.output_ids for t in traces] == [t.output_ids for t in plain]


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.layer.CHUNK", 5)
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    proposer = Checked(random_head(model, "eagle3"), lm, Sparse(PATHS))
    requests = [Request(str(num), random_ids(num, seed=num)) for num in (3, 12, 17)]
    SpeculativeDecoder(lm, proposer, Rejection(), Sampling(0), Stopping(6), batch=3).decode(
        requests
    )
    assert proposer.num_checked > 10


@pytest.mark.parametrize("kind", KINDS)
def test_rows_neither_leak_nor_remember(kind: str) -> None:
    """A batch is as its requests are one by one, and rows are used again; see `check_proposer`."""
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    head = random_head(model, kind)
    for tree in (Chain(3), Dynamic(6, 3, 3)):
        check_proposer(lambda tree=tree: Eagle(head, lm, tree), lm)


PROMPT: Tokens = (0, 1, 2)
FORK = (-1, 0, 0, 2)


@cache
def tiny() -> Any:
    """A verifier of three tokens in float64, which is not too sure of them."""
    model = tiny_model("llama", vocab_size=3, eos_token_id=None).double()
    generator = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        weight.data += 0.15 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


@cache
@torch.no_grad()
def verifier_row(tokens: Tokens) -> Tensor:
    return tiny()(torch.tensor([list(tokens)])).logits[0, -1].softmax(-1)


RULES: dict[str, tuple[Callable[[], TreePolicy], VerificationRule]] = {
    "chain": (lambda: ChoosingChain(2), Rejection()),
    "chain block": (lambda: ChoosingChain(2), Block()),
    "iid": (lambda: ChoosingTree(FORK, Draw.IID), Rejection()),
    "without_replacement": (lambda: ChoosingTree(FORK, Draw.WITHOUT_REPLACEMENT), Traversal()),
    "dynamic": (lambda: Dynamic(3, 2, 2), Rejection()),
}


@pytest.mark.parametrize("case", RULES)
def test_the_text_has_exactly_the_verifiers_distribution(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All draws of all steps are enumerated, with the rows of the real proposer."""
    make, rule = RULES[case]
    model, length = tiny(), 3
    proposer = Eagle(random_head(model, "eagle3"), HFCausalLM(model), make())
    options: dict[str, Any] = {"sampling": Sampling(from_checkpoint=False), "stopping": Stopping(3)}
    decoder = SpeculativeDecoder(HFCausalLM(model), proposer, rule, **options)
    drafted = set[int]()

    def play(branching: BranchingStream) -> Tokens:
        stream = EnumeratedStream(branching, 4)
        monkeypatch.setattr(request_module, "RandomStream", lambda *key: stream)
        (trace,) = decoder.decode([Request("a", list(PROMPT))])
        drafted.update(step.drafted for step in trace.steps)
        return trace.output_ids

    found = outcomes(play)
    expected = text_distribution(verifier_row, length, frozenset(), PROMPT)
    assert max(drafted) >= 2
    assert total_variation(found, expected) < 1e-12


def test_layers_that_are_not_there_are_refused() -> None:
    model = tiny_model("llama")  # of two layers
    head = EagleHead(32, 61, reads=[1])
    with pytest.raises(UserError, match=r"reads=\[1\]: expected numbers from 0 to 0, or final"):
        Eagle(head, HFCausalLM(model), Chain(2))
