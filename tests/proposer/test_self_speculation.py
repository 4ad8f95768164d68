"""A verifier that drafts with its own layers: texts, distributions, and the cells of the steps."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.protocols import TreeFinisher
from specdec.core.values import Context, Draw, Proposal
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.fingerprint import described
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.proposer.early_exit import EarlyExit, EarlyExitHead
from specdec.proposer.layer_skip import LayerSkip
from specdec.proposer.self_speculation import SelfSpeculation
from specdec.verification.block import Block
from specdec.verification.rejection import Rejection
from specdec.verification.traversal import Traversal
from tests.lm.test_layer_split import deeper
from tests.support.enumerated import written
from tests.support.families import plain_logits, random_ids, tiny_model
from tests.support.marking import thorough
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingTree,
    Tokens,
    text_distribution,
    total_variation,
)

V, LENGTH = 3, 3
PROMPT: Tokens = (2, 0, 1, 2)
ROUNDING = 1e-5  # float32, in the logits of three tokens
SMALL = tiny_model("llama", vocab_size=V, num_hidden_layers=3)
PATHS = [[0], [1], [0, 0], [1, 0], [0, 0, 0]]
CHAIN, TREE = sd.Chain(3), sd.Sparse(PATHS)
GREEDY = sd.Sampling(temperature=0)
Make = Callable[[HFCausalLM, Any], SelfSpeculation]


def exit_head(model: Any, own: bool = False, seed: int = 0) -> EarlyExitHead:
    """Make an exit that changes what it is given."""
    torch.manual_seed(seed)
    size, width = model.config.vocab_size, model.config.hidden_size
    head = EarlyExitHead(width, size, 1, own_vocabulary_head=own)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return head.eval()


MAKERS: dict[str, Make] = {
    "exit": lambda verifier, tree: EarlyExit(verifier, tree),
    "trained": lambda verifier, tree: EarlyExit(verifier, tree, head=exit_head(verifier.model)),
    "skip": lambda verifier, tree: LayerSkip(verifier, tree, [1]),
    "first": lambda verifier, tree: LayerSkip(verifier, tree, [0, 2]),
}


# --- Greedy texts ---

FAMILIES = [
    pytest.param(name, marks=[] if name in ("llama", "gpt2") else pytest.mark.thorough)
    for name in ("llama", "gpt2", "qwen2", "gpt_neox", "mixtral", "mistral", "gemma3_text")
]


@pytest.mark.parametrize("tree", [CHAIN, TREE, sd.Dynamic(6)], ids=["chain", "tree", "dynamic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_are_those_of_generate(family: str, tree: Any) -> None:
    """Ragged batches, of which rows leave and are taken by other requests."""
    model: Any = deeper(family)
    verifier = HFCausalLM(model)
    requests = [
        Request(str(n), random_ids(3 + 4 * n, seed=n), max_new_tokens=most) for n, most in BUDGETS
    ]
    expected = {
        each.request_id: model.generate(
            torch.tensor([list(each.token_ids)]),
            max_new_tokens=each.max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(each.token_ids) :].tolist()
        for each in requests
    }
    for name in ("exit", "skip"):
        proposer = MAKERS[name](verifier, tree)
        decoder = SpeculativeDecoder(
            verifier, proposer, Rejection(), GREEDY, Stopping(18, NO_END), batch=2
        )
        for trace in decoder.decode(requests):
            assert list(trace.output_ids) == expected[trace.prompt_id], (name, trace.prompt_id)


BUDGETS = [(0, 5), (1, 18), (2, 11), (3, 1)]


def test_a_batch_is_its_requests_one_by_one() -> None:
    verifier = HFCausalLM(deeper("llama"))
    requests = [Request(str(n), random_ids(3 + 4 * n, seed=n)) for n in range(4)]
    for tree in (CHAIN, sd.Sampled([2, 2], "iid")):
        texts = []
        for batch in (1, 3):
            decoder = SpeculativeDecoder(
                verifier,
                EarlyExit(verifier, tree),
                Rejection(),
                sd.Sampling(),
                Stopping(12, NO_END),
                batch=batch,
            )
            texts.append([trace.output_ids for trace in decoder.decode(requests)])
        assert texts[0] == texts[1]


# --- Distributions ---


@cache
def target(tokens: Tokens) -> Tensor:  # [V] float64
    return plain_logits(SMALL, tokens)[-1].double().softmax(dim=-1)


PAIRS = [
    pytest.param(ChoosingChain(2), Rejection(), id="chain"),
    thorough(ChoosingChain(2), Block(), id="block"),
    thorough(ChoosingTree((-1, 0, 0), Draw.IID), Rejection(), id="siblings"),
    thorough(ChoosingTree((-1, 0, 0), Draw.WITHOUT_REPLACEMENT), Traversal(), id="traversal"),
    pytest.param(sd.Sparse([[0], [1], [0, 0]]), Rejection(), id="ranked"),
]


@pytest.mark.parametrize(("tree", "rule"), PAIRS)
@pytest.mark.parametrize("name", ["trained", "skip", thorough("exit"), thorough("first")])
def test_texts_have_exactly_the_verifiers_distribution(name: str, tree: Any, rule: Any) -> None:
    """All decisions of several steps enumerated, while layers read in turns."""
    verifier = HFCausalLM(SMALL)
    proposer = MAKERS[name](verifier, tree)
    decoder = SpeculativeDecoder(verifier, proposer, rule, stopping=Stopping(LENGTH, NO_END))

    found = total_variation(
        written(decoder, PROMPT), text_distribution(target, LENGTH, NO_END, PROMPT)
    )
    assert found < ROUNDING, f"TV {found:.1e}"


def proposals(proposer: Any, verifier: HFCausalLM, num: int) -> list[tuple[Tokens, Proposal]]:
    """Decode; returns what was proposed, and behind which text."""
    found: list[tuple[Tokens, Proposal]] = []
    propose = proposer.propose

    def watched(contexts: Sequence[Context]) -> list[Proposal]:
        made = propose(contexts)
        texts = [tuple(each.token_ids) for each in contexts]
        found.extend(pair for pair in zip(texts, made, strict=True) if pair[1].has_candidates)
        return made

    proposer.propose = watched
    decoder = SpeculativeDecoder(
        verifier, proposer, Rejection(), sd.Sampling(), Stopping(num, NO_END), batch=2
    )
    decoder.decode([Request(str(n), random_ids(4 + n, seed=n)) for n in range(3)])
    return found


@pytest.mark.parametrize("tree", [CHAIN, sd.Sampled([2, 2], "iid")], ids=["chain", "tree"])
def test_q_is_what_the_first_layers_say_of_plain_text(tree: Any) -> None:
    """A stock model of those layers alone, with the same weights, reads each path anew."""
    verifier = HFCausalLM(deeper("llama"))
    shallow = tiny_model("llama", num_hidden_layers=2)
    shallow.load_state_dict(verifier.model.state_dict(), strict=False)
    checked = 0
    for text, proposal in proposals(EarlyExit(verifier, tree, 2), verifier, 9):
        assert proposal.draft_probs is not None
        for node, q in enumerate(proposal.draft_probs):
            above = [n for n, seen in enumerate(proposal.tree.ancestors()[node]) if seen]
            path = [proposal.tree.token_ids[n] for n in above[1:]]
            expected = plain_logits(shallow, [*text, *path])[-1].softmax(dim=-1)
            assert torch.allclose(q, expected, atol=1e-5)
            checked += 1
    assert checked > 20


def test_what_drafts_alone_drafts_the_same() -> None:
    """Replay and calibration ask a model with cells of its own."""
    verifier = HFCausalLM(deeper("llama"))
    ours = EarlyExit(verifier, CHAIN, head=exit_head(verifier.model, own=True))
    for (text, one), (_, other) in zip(
        proposals(ours, verifier, 9), proposals(ours.alone(), verifier, 9), strict=True
    ):
        assert one.tree == other.tree, text
        assert one.draft_probs is not None
        assert other.draft_probs is not None
        assert torch.allclose(one.draft_probs, other.draft_probs, atol=1e-5)


# --- Exits ---


def test_a_fresh_exit_changes_nothing() -> None:
    head = EarlyExitHead(8, 12, 1, num_layers=2)
    states = torch.randn(3, 8) * 5
    assert torch.allclose(head(states), states, atol=1e-5)


def test_an_exit_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    verifier = load("zoo:verifier")
    head = exit_head(verifier.model, own=True)
    head.belong_to(described(verifier))
    head.save_pretrained(tmp_path)
    found = EarlyExit.load(verifier, CHAIN, str(tmp_path))
    assert found.exit_layer == 1
    assert found.head is not None
    states = torch.randn(3, verifier.state_size)
    assert torch.equal(found.head(states), head(states))
    card = (tmp_path / "README.md").read_text()
    assert "An exit behind the first 1 layers of one language model" in card
    assert "proposer=early_exit proposer.path=." in card
    with pytest.raises(UserError, match="trained on another verifier"):
        EarlyExit.load(load("zoo:draft"), CHAIN, str(tmp_path))
    with pytest.raises(UserError, match="exit_layer=3: expected 1, which the exit was trained at"):
        EarlyExit.load(verifier, CHAIN, str(tmp_path), exit_layer=3)


@pytest.mark.parametrize("exit_layer", [0, 4, True, "2"])
def test_layers_that_are_not_there(exit_layer: Any) -> None:
    with pytest.raises(UserError, match=r"^exit_layer=.*: expected a number of layers from 1 to 3"):
        EarlyExit(HFCausalLM(deeper("llama")), CHAIN, exit_layer)


# --- Beside the decoder ---


def test_the_verifier_must_be_the_very_one() -> None:
    model = deeper("llama")
    verifier, other = HFCausalLM(model), HFCausalLM(model)
    proposer = EarlyExit(other, CHAIN)
    assert isinstance(proposer, TreeFinisher)
    with pytest.raises(UserError, match="drafts with layers of another verifier"):
        SpeculativeDecoder(verifier, proposer, Rejection())


def test_experts_are_counted_in_whole_forwards() -> None:
    verifier = HFCausalLM(deeper("mixtral"))
    with pytest.raises(UserError, match=r"^experts=true: EarlyExit reads candidates by parts"):
        SpeculativeDecoder(verifier, EarlyExit(verifier, CHAIN), Rejection(), experts=True)


def test_no_candidates_where_the_context_ends() -> None:
    """Positions beyond it would not be there; the last tokens come one by one."""
    model = deeper("gpt2")
    verifier = HFCausalLM(model, max_length=20)
    decoder = SpeculativeDecoder(verifier, EarlyExit(verifier, TREE), Rejection(), GREEDY)
    (trace,) = decoder.decode([Request("one", random_ids(8, seed=1))])
    assert len(trace.output_ids) <= 12
    assert sum(step.drafted for step in trace.steps) > 0
