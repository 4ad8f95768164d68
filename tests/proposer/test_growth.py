"""Trees grown by a real model: each level is read at its positions, behind its own ancestors."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor

from specdec.core.protocols import TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Proposal
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.tree.best_first import BestFirst
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import FixedTree
from specdec.tree.sampled import Sampled, SampledTree
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.support.asking import context, proposals_of
from tests.support.families import VOCAB_SIZE, noisy_copy, plain_logits, random_ids, tiny_model

PATHS = [[0, 0, 1], [2, 0], [0, 3], [1]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_every_node_has_its_rank_after_its_own_path(family: str) -> None:
    """Two rows of unlike lengths, each node against a plain forward over its path."""
    model = tiny_model(family)
    proposer = DraftModel(HFCausalLM(model), Sparse(PATHS))
    rows = [context(random_ids(num, seed=num), row=row) for row, num in enumerate((5, 9))]
    for one, proposal in zip(
        rows, proposals_of(proposer, *rows, vocab_size=VOCAB_SIZE), strict=True
    ):
        texts, ranks = [list(one.token_ids)], list[int]()
        tree = proposal.tree
        for token, parent in zip(tree.token_ids[1:], tree.parents[1:], strict=True):
            order = plain_logits(model, texts[parent])[-1].argsort(descending=True).tolist()
            ranks.append(order.index(token))
            texts.append([*texts[parent], token])
        assert ranks == [0, 1, 2, 0, 3, 0, 1], f"{family}, row {one.row}"


def test_processors_see_the_path_of_each_node() -> None:
    """A draft that heeds them as the verifier does agrees with it, on every branch."""
    model = tiny_model("llama")
    penalty: Any = RepetitionPenaltyLogitsProcessor(30.0)
    paths = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 0, 0], [2, 1, 0]]
    proposer = DraftModel(HFCausalLM(model), Sparse(paths))
    rows = [
        replace(context(random_ids(num, seed=num), row=row), processors=[penalty])
        for row, num in enumerate((5, 9))
    ]
    plain, changed = list[int](), list[int]()
    for one, proposal in zip(
        rows, proposals_of(proposer, *rows, vocab_size=VOCAB_SIZE), strict=True
    ):
        texts, tree = [list(one.token_ids)], proposal.tree
        for token, parent in zip(tree.token_ids[1:], tree.parents[1:], strict=True):
            logits = plain_logits(model, texts[parent])[-1:]
            for found, scores in (
                (plain, logits),
                (changed, penalty(torch.tensor([texts[parent]]), logits.clone())),
            ):
                order = scores[0].argsort(descending=True).tolist()
                found.append(order.index(token))
            texts.append([*texts[parent], token])
    assert changed == [0, 1, 2, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0] * 2
    assert plain != changed, "the processor changes nothing"


# --- Trees of which each request has another ---

SURE = 0.4  # about as many of the tiny models' distributions have such a token as have none
UNEVEN = [(0,), (1,), (0, 0), (0, 1), (0, 2), (1, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1)]
SHAPES: dict[str, TreePolicy] = {
    "chain": Chain(4, SURE),
    "filtered": Filtered(4, 0.2, 0),
    "filtered sure": Filtered(4, 0.1, 3, SURE),
    "dynamic": Dynamic(9, 3, 4),
    "dynamic gain": Dynamic(20, 4, 6, min_gain=0.04),
    "dynamic sure": Dynamic(20, 4, 5, min_confidence=SURE),
    "best first": BestFirst(9, 3),
    "best first gain": BestFirst(20, 4, 5, min_gain=0.04),
    "best first sure": BestFirst(20, 4, min_confidence=SURE),
    "iid": Sampled([2, 2, 1], "iid", SURE),
    "2,1,1": Sampled([2, 1, 1], "without_replacement", SURE),
    "1,1,2": Sampled([1, 1, 2], "without_replacement", SURE),
    "uneven": SampledTree(UNEVEN, Draw.WITHOUT_REPLACEMENT, SURE),
    "top plus one": Sampled([3, 2], "top_plus_one", SURE),
    "sparse": Sparse([[0, 0, 1], [2, 0], [0, 3], [1]], SURE),
}
STOPPING = [name for name, tree in SHAPES.items() if tree.min_confidence > 0]
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_family = pytest.mark.parametrize("family", ["llama", "gpt2"])
SAMPLING = Sampling(1.3, top_p=0.95)


@cache
def tiny(family: str) -> PreTrainedModel:
    return tiny_model(family, initializer_range=0.5)


def requests() -> list[Context]:
    """Texts of unlike lengths; some may get two draft tokens more, and one none."""
    budgets = (99, 99, 3, 99, 1, 99, 3, 99, 99, 3, 99, 99)
    return [
        context(random_ids(4 + row, seed=row), budget, row, sampling=SAMPLING, key=5)
        for row, budget in enumerate(budgets)
    ]


def drafted(family: str, shape: str, *rows: Context) -> tuple[list[Proposal], int]:
    """Ask, and count the forwards that it took."""
    lm = HFCausalLM(tiny(family))
    before: list[int] = []

    class Counted(DraftModel):
        def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
            before.append(lm.num_calls)
            return super().propose(contexts)

    proposer = Counted(lm, SHAPES[shape])
    proposals = proposals_of(proposer, *rows, vocab_size=VOCAB_SIZE)
    return proposals, lm.num_calls - before[0]


def asked_nodes(proposal: Proposal) -> list[int]:
    """The nodes that something was drawn after; rows of others may be missing."""
    nodes = [node for node, children in enumerate(proposal.tree.children) if children]
    return [*nodes, proposal.tree.num_draft_tokens] if proposal.withheld else nodes


def assert_same_distributions(proposal: Proposal, expected: Proposal) -> None:
    ours, theirs = proposal.draft_probs, expected.draft_probs
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        nodes = asked_nodes(expected)
        torch.testing.assert_close(ours[nodes], theirs[nodes], rtol=1e-3, atol=1e-5)


def path_to(tree: CandidateTree, node: int) -> list[int]:
    tokens: list[int] = []
    while node > 0:
        tokens.insert(0, tree.token_ids[node])
        node = tree.parents[node]
    return tokens


def distribution_after(
    family: str, one: Context, tree: CandidateTree, node: int
) -> Tensor:  # [V] logits
    return plain_logits(tiny(family), [*one.token_ids, *path_to(tree, node)])[-1]


@each_family
@each_shape
def test_a_batch_of_unlike_shapes_is_like_requests_alone(family: str, shape: str) -> None:
    """Neither tokens nor distributions nor counted calls depend on the neighbours."""
    together, _ = drafted(family, shape, *requests())
    for one, proposal in zip(requests(), together, strict=True):
        (alone,), num_calls = drafted(family, shape, one)
        assert proposal.tree == alone.tree, f"row {one.row}"
        assert proposal.withheld == alone.withheld
        assert proposal.num_draft_calls == alone.num_draft_calls == num_calls
        assert_same_distributions(proposal, alone)
    shapes = {proposal.tree.parents for proposal in together}
    assert len(shapes) > 2, "all requests have the same tree: the test shows little"


@each_family
@each_shape
def test_every_node_s_distribution_is_that_after_its_own_path(family: str, shape: str) -> None:
    """Rows of `draft_probs`, or the order of a node's candidates, against plain forwards."""
    num_checked = 0
    for one, proposal in zip(requests(), drafted(family, shape, *requests())[0], strict=True):
        tree = proposal.tree
        for node in asked_nodes(proposal):
            logits = distribution_after(family, one, tree, node)
            tokens = [tree.token_ids[child] for child in tree.children[node]]
            if proposal.draft_probs is None:
                ranks = [logits.argsort(descending=True).tolist().index(t) for t in tokens]
                if isinstance(SHAPES[shape], Dynamic | BestFirst):
                    assert ranks == list(range(len(tokens)))
                else:
                    assert ranks == sorted(ranks)
            else:
                row, distribution = proposal.draft_probs[node], SAMPLING.warp(logits)
                if proposal.draw is Draw.FILTERED:
                    assert all(row[token] > 0 for token in tokens)
                    distribution = distribution * (row > 0)
                torch.testing.assert_close(row, distribution, rtol=1e-3, atol=1e-5)
            num_checked += 1
    assert num_checked > 8


@each_family
@pytest.mark.parametrize("shape", STOPPING)
def test_growth_stops_where_the_draft_is_not_sure_and_nowhere_else(family: str, shape: str) -> None:
    """By the draft's own distribution at temperature 1, whatever the text is sampled with."""
    tree_policy = SHAPES[shape]
    seen: set[bool] = set()
    for one, proposal in zip(requests(), drafted(family, shape, *requests())[0], strict=True):
        tree = proposal.tree
        deepest = min(tree_policy.max_depth, one.max_depth)
        numbers = child_numbers(tree)
        for node, children in enumerate(tree.children):
            if tree.depths[node] >= deepest:
                assert not children
                continue
            confidence = float(distribution_after(family, one, tree, node).softmax(dim=-1).max())
            assert abs(confidence - SURE) > 1e-4, "too near to tell"
            seen.add(confidence >= SURE)
            if confidence < SURE:
                assert not children
            elif isinstance(tree_policy, FixedTree) and proposal.draw not in (
                Draw.FILTERED,
                Draw.DETERMINISTIC,
            ):
                expected = sum(path[:-1] == numbers[node] for path in tree_policy.nodes)
                assert len(children) == expected, f"{numbers[node]} is not complete"
    assert seen == {True, False}


def child_numbers(tree: CandidateTree) -> list[tuple[int, ...]]:
    """Which child of which child each node is."""
    found: list[tuple[int, ...]] = [()]
    for node, parent in enumerate(tree.parents[1:], start=1):
        found.append((*found[parent], tree.children[parent].index(node)))
    return found


@each_family
@pytest.mark.parametrize("shape", ["chain", "iid", "2,1,1", "1,1,2"])
def test_calls_are_counted_to_the_level_that_nothing_grew_in(family: str, shape: str) -> None:
    """One call more than the depth: the one that said that the draft is not sure."""
    for one, proposal in zip(requests(), drafted(family, shape, *requests())[0], strict=True):
        depth = max(proposal.tree.depths)
        limit = min(SHAPES[shape].max_depth, one.max_depth)
        assert proposal.num_draft_calls == min(depth + 1, limit)


# --- Step after step ---


class Checked(DraftModel):
    """Compares each proposal with that of a proposer that has just begun with the same text."""

    num_checked = 0

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        super().open(num_rows, capacity, vocab_size)
        assert isinstance(self.model, HFCausalLM)
        self.fresh = DraftModel(HFCausalLM(self.model.model), self.tree, self.temperature)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        streams = [deepcopy(one.draft_stream) for one in contexts]
        proposals = super().propose(contexts)
        for one, stream, proposal in zip(contexts, streams, proposals, strict=True):
            same = replace(one, row=0, draft_stream=stream, token_ids=list(one.token_ids))
            (expected,) = proposals_of(self.fresh, same, vocab_size=VOCAB_SIZE)
            assert proposal.tree == expected.tree, f"after {len(one.token_ids)} tokens"
            assert proposal.withheld == expected.withheld
            assert_same_distributions(proposal, expected)
            self.num_checked += 1
        return proposals


# Of those above, without the rule that only one tree has.
STEPPED = [name for name, tree in SHAPES.items() if tree.draw is not Draw.TOP_PLUS_ONE]


@pytest.mark.thorough
@each_family
@pytest.mark.parametrize("shape", STEPPED)
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=lambda t: f"T={t:g}")
def test_the_cache_is_right_after_whatever_a_step_left_there(
    family: str, shape: str, temperature: float
) -> None:
    """Trees, chains that stopped and chains that did not; and greedy text is unchanged."""
    verifier = tiny(family)
    draft = HFCausalLM(noisy_copy(verifier, 0.02))
    lm = HFCausalLM(verifier)
    # A temperature of the draft's own, so that trees branch also where the text is greedy.
    proposer = Checked(draft, SHAPES[shape], temperature=1.0)
    prompts = [random_ids(num, seed=num) for num in (1, 5, 9, 12)]
    texts = [Request(str(number), prompt) for number, prompt in enumerate(prompts)]
    options = {"sampling": Sampling(temperature), "stopping": Stopping(14), "batch": 3}
    traces = SpeculativeDecoder(lm, proposer, Rejection(), **options).decode(texts)
    steps = [step for trace in traces for step in trace.steps]
    assert proposer.num_checked == len(steps)
    assert sum(step.accepted for step in steps) > 3, "little was accepted: the test shows little"
    assert len({(step.drafted, step.depth) for step in steps}) > 1
    if temperature == 0:
        plain = SpeculativeDecoder(lm, NoProposer(), Rejection(), **options).decode(texts)
        assert [t.output_ids for t in traces] == [t.output_ids for t in plain]
