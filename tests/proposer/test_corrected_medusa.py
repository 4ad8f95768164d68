"""Medusa heads with a correction: rows are those behind each node's own token, wherever asked."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Proposal
from specdec.decoding import request as request_module
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.heads.forcing import HeadTargets, forced_states
from specdec.lm.hf import HFCausalLM
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.proposer.levels import Frontier
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.verification.block import Block
from specdec.verification.kseq_block import KSeqBlock
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.traversal import Traversal
from tests.proposer.test_medusa import PATHS, K, random_heads
from tests.support.asking import context
from tests.support.families import plain_logits, random_ids, tiny_model
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingTree,
    EnumeratedStream,
    Tokens,
    text_distribution,
    total_variation,
)
from tests.support.toy_parts import toy_heads, toy_model

MARKOV: dict[str, Any] = {"correction": "markov", "rank": 4}


def corrected(model: Any) -> MedusaHeads:
    return random_heads(model, **MARKOV)


def rows_of(heads: MedusaHeads, hidden: Tensor, before: int, unembed: Any) -> Tensor:  # [K, V]
    """What each head says behind a token, by the definition: U + W2 W1[x]."""
    states = heads.states(hidden, torch.zeros(K, 0))
    own = torch.stack(
        [
            heads.vocabulary_heads[i](state) if heads.vocabulary_heads else unembed(state)
            for i, state in enumerate(states)
        ]
    )
    weights = heads.correction
    assert weights is not None
    return own + weights.after.weight @ weights.before.weight[before]


TREES: dict[str, Any] = {
    "chain": sd.Chain(K),
    "sure": sd.Chain(K, min_confidence=0.02),
    "sampled": sd.Sampled([2, 2, 1], "without_replacement"),
    "iid": sd.Sampled([2, 1, 1], "iid"),
    "sparse": sd.Sparse(PATHS),
    "dynamic": sd.Dynamic(8, K, 4),
    "best_first": sd.BestFirst(8, K),
}


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("shape", TREES)
def test_every_node_has_the_row_behind_its_own_token(shape: str, own: bool) -> None:
    """Of ragged batches, step after step; q is the very row, as the text is sampled."""
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    heads = random_heads(model, own_vocabulary_head=own, **MARKOV)
    tree = TREES[shape]
    sampled = tree.draw is not Draw.DETERMINISTIC
    sampling = sd.Sampling(0.8, top_k=9) if sampled else sd.Sampling(0)
    seen: set[Tokens] = set()

    class Checked(Medusa):
        def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
            proposals = super().propose(contexts)
            for one, proposal in zip(contexts, proposals, strict=True):
                if one.max_depth > 0:
                    compare(one.features["final"][-1], proposal)
            return proposals

    def compare(hidden: Tensor, proposal: Proposal) -> None:
        grown = proposal.tree
        for node, children in enumerate(grown.children):
            if not children:
                continue
            token, depth = grown.token_ids[node], grown.depths[node]
            row = rows_of(heads, hidden, token, lm.unembed)[depth]
            if proposal.draft_probs is not None:
                expected = sampling.warp(row)
                torch.testing.assert_close(proposal.draft_probs[node], expected)
            else:
                ranks = [row.argsort(descending=True).tolist().index(t) for t in below(grown, node)]
                assert ranks == (sorted(ranks) if shape == "sparse" else list(range(len(ranks))))
            seen.add((depth, token))

    def below(grown: CandidateTree, node: int) -> list[int]:
        return [grown.token_ids[child] for child in grown.children[node]]

    requests = [Request(str(n), random_ids(n, seed=n)) for n in (5, 3, 8)]
    options: dict[str, Any] = {"sampling": sampling, "stopping": Stopping(9)}
    texts = [
        SpeculativeDecoder(
            lm, Checked(heads, lm, tree), Rejection(), batch=batch, **options
        ).decode(requests)
        for batch in (1, 3)
    ]
    assert len(seen) > 12
    ids = [[trace.output_ids for trace in each] for each in texts]
    assert ids[0] == ids[1], "a batch is its requests one by one"
    if not sampled:
        plain = SpeculativeDecoder(lm, sd.NoProposer(), Rejection(), **options).decode(requests)
        assert ids[0] == [trace.output_ids for trace in plain]


@torch.inference_mode()
def test_the_best_paths_are_those_of_the_corrected_rows() -> None:
    """Scored by hand along all paths of the 20 likeliest tokens; other trees than without."""
    model = tiny_model("llama")
    lm, heads = HFCausalLM(model), corrected(tiny_model("llama"))
    text = random_ids(6, seed=3)
    hidden = model.base_model(torch.tensor([text[:-1]])).last_hidden_state[0]
    found: list[list[Tokens]] = []
    for one in (heads, random_heads(model)):
        proposer = Medusa(one, lm, sd.BestFirst(12, K))
        proposer.open(1, 99, lm.vocab_size)
        ready = context(text)
        ready.features["final"] = hidden  # pyright: ignore
        proposer.reset([ready])
        (proposal,) = proposer.propose([ready])
        grown, paths = proposal.tree, list[Tokens]([()])
        for node, parent in enumerate(grown.parents[1:], start=1):
            paths.append((*paths[parent], grown.token_ids[node]))
        found.append(paths[1:])
    level, scored = {(): 1.0}, dict[Tokens, float]()
    for depth in range(K):
        below = dict[Tokens, float]()
        for path, above in level.items():
            row = rows_of(heads, hidden[-1], [text[-1], *path][-1], lm.unembed)[depth].softmax(-1)
            for q, token in zip(*row.topk(20), strict=True):
                below[*path, int(token)] = above * float(q)
        scored |= below
        level = below
    best = sorted(scored, key=lambda path: -scored[path])[:12]
    assert set(found[0]) == set(best)
    assert set(found[0]) != set(found[1]), "the correction is bypassed"


@torch.inference_mode()
def test_rows_in_training_are_the_rows_in_drafting() -> None:
    """All positions packed, behind the text's own tokens; exactly, in float64."""
    verifier = toy_model()
    heads = toy_heads(MedusaHeads, verifier, num_heads=K, **MARKOV)
    token_ids = torch.tensor([random_ids(14, seed=1), random_ids(14, seed=2)])
    hidden = verifier.model.base_model(token_ids).last_hidden_state
    targets = HeadTargets.of(token_ids, torch.ones_like(token_ids, dtype=torch.bool), K)
    states = forced_states(heads, verifier, hidden, token_ids, targets)
    packed = torch.stack(
        [
            heads.logits(head, state, targets.following_ids[:, head], verifier.unembed)
            for head, state in enumerate(states)
        ]
    )
    proposer = Medusa(heads, verifier, sd.Chain(K))
    proposer.open(1, 99, verifier.vocab_size)
    checked = 0
    for place, position in enumerate(targets.positions.tolist()):
        row, t = divmod(position, token_ids.shape[1])
        text = token_ids[row].tolist()
        if t + 1 + K > len(text):  # some heads have nothing to say there
            continue
        ready = context(text[: t + 2])
        ready.features["final"] = hidden[row, : t + 1]  # pyright: ignore
        proposer._take_in([ready])
        source = proposer._source([ready])
        said = [next(source)[0, 0]]
        for token in text[t + 2 : t + 1 + K]:
            below = Frontier(torch.tensor([[token]]), torch.tensor([[0]]), is_whole_level=True)
            said.append(source.send(below)[0, 0])
        torch.testing.assert_close(torch.stack(said), packed[:, place], rtol=0, atol=1e-12)
        checked += 1
    assert checked == 2 * (14 - K)


# --- Distributions ---

V, LENGTH = 3, 3
PROMPT: Tokens = (2, 0, 1, 2)
SMALL = tiny_model("llama", vocab_size=V)
ROUNDING = 1e-5  # float32, in the logits of three tokens
PAIRS = [
    ("chain", ChoosingChain(2), Rejection()),
    ("block", ChoosingChain(2), Block()),
    ("siblings", ChoosingTree((-1, 0, 0), Draw.IID), Rejection()),
    ("traversal", ChoosingTree((-1, 0, 0), Draw.WITHOUT_REPLACEMENT), Traversal()),
    ("ranked", sd.Sparse([[0], [1], [0, 0]]), Rejection()),
    ("best first", sd.BestFirst(4, 2), Rejection()),
    ("best first, matched", sd.BestFirst(5, 2), Match()),
]
LONGER = [
    ("matched", ChoosingChain(2), Match()),
    ("deeper siblings", ChoosingTree((-1, 0, 0, 1), Draw.IID), KSeqBlock()),
    ("deeper traversal", ChoosingTree((-1, 0, 0, 2), Draw.WITHOUT_REPLACEMENT), Traversal()),
]
CASES = [*PAIRS, *(pytest.param(*each, marks=pytest.mark.thorough) for each in LONGER)]


@cache
def target(tokens: Tokens) -> Tensor:  # [V] float64
    return plain_logits(SMALL, tokens)[-1].double().softmax(dim=-1)


def enumerated(proposer: Medusa, rule: Any, monkeypatch: pytest.MonkeyPatch) -> dict[Tokens, float]:
    """The texts of several steps, from all random decisions that there are."""
    lm = proposer.verifier
    decoder = SpeculativeDecoder(lm, proposer, rule, stopping=Stopping(LENGTH, NO_END))

    def play(branching: BranchingStream) -> Tokens:
        stream = EnumeratedStream(branching)
        monkeypatch.setattr(request_module, "RandomStream", lambda *key: stream)
        return decoder.decode([Request("a", PROMPT)])[0].output_ids

    return outcomes(play)


@pytest.mark.parametrize(
    ("name", "tree", "rule"), CASES, ids=[each[0] for each in (*PAIRS, *LONGER)]
)
def test_texts_have_exactly_the_verifiers_distribution(
    name: str, tree: Any, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Medusa(corrected(SMALL), HFCausalLM(SMALL), tree)
    found = enumerated(proposer, rule, monkeypatch)
    assert total_variation(found, text_distribution(target, LENGTH, NO_END, PROMPT)) < ROUNDING


def test_a_q_without_the_correction_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn with it, and told to the rule without: a control that must fail."""

    class Forgetful(Medusa):
        def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
            drawn = super().propose(contexts)
            for one, proposal in zip(contexts, drawn, strict=True):
                for depth in range(proposal.tree.num_draft_tokens):
                    state = self.heads.states(one.features["final"][-1], torch.zeros(K, 0))[depth]
                    assert proposal.draft_probs is not None
                    row = self.heads.vocabulary_heads[depth](state).softmax(dim=-1)
                    proposal.draft_probs[depth].copy_(row)
            return drawn

    proposer = Forgetful(corrected(SMALL), HFCausalLM(SMALL), ChoosingChain(2))
    with pytest.raises(UserError, match="not drawn from its draft_probs"):
        enumerated(proposer, Rejection(), monkeypatch)


def test_tokens_that_a_correction_does_not_know_are_refused() -> None:
    verifier = HFCausalLM(tiny_model("llama"))
    heads = MedusaHeads(verifier.state_size, verifier.vocab_size - 7, K, **MARKOV)
    with pytest.raises(UserError, match=r"^heads\.vocab_size=\d+: expected \d+ tokens at least"):
        Medusa(heads, verifier, sd.Chain(K))
