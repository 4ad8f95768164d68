"""Chains that a model drafts by one program: the tokens that it would draft one by one."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec as sd
from specdec.core.draft_chain import DraftChain, DraftedChain
from specdec.core.protocols import TreePolicy
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.lm.batch import pad
from specdec.lm.hf import HFCausalLM
from specdec.tree.fixed import Candidates
from tests.runtime.test_programs import opened
from tests.support.families import FAMILIES, noisy_copy, tiny_model

pytestmark = pytest.mark.usefixtures("uncompiled", "without_gradients")

DEPTH = 3
STARTS = [5, 9, 3, 12]
FILTERS = Sampling(temperature=0.7, top_k=30, top_p=0.9, min_p=0.01)


def one_by_one(
    lm: HFCausalLM,
    row: int,
    text: Sequence[int],
    chain: DraftChain,
    uniforms: Sequence[float],
) -> tuple[list[int], Tensor]:
    """Draft as anybody would who has not heard of programs."""
    found, drawn_from = list[int](), list[Tensor]()
    said = lm.forward([row], torch.tensor([list(text)])).logits[:, -1:]
    for uniform in uniforms:
        probs, token = chain.drawn(said, torch.tensor([[uniform]], dtype=torch.float64))
        found.append(int(token))
        drawn_from.append(probs[0, 0])
        if len(found) < chain.depth:
            token_id = min(int(token), lm.vocab_size - 1) if int(token) < lm.vocab_size else 0
            said = lm.forward([row], torch.tensor([[token_id]])).logits
    return found, torch.stack(drawn_from)


def compare(lm: HFCausalLM, plain: HFCausalLM, rows: Sequence[int], chain: DraftChain) -> None:
    """Draft three steps, of which two are compared inside, and look at the rows afterwards."""
    for step, lengths in enumerate(([1, 2, 3, 1], [2, 2, 2, 2], [1, 1, 1, 1])):
        texts = [[(3 * row + at + step) % 50 for at in range(lengths[row])] for row in rows]
        uniforms = [[((7 * row + 3 * at + step) % 10) / 10 for at in range(DEPTH)] for row in rows]
        widths = [len(text) for text in texts]
        found = lm.draft_chain(rows, pad(texts, lm.device, 2), widths, chain, uniforms)
        assert found is not None
        for place, row in enumerate(rows):
            expected, probs = one_by_one(plain, row, texts[place], chain, uniforms[place])
            assert found.token_ids[place].tolist() == expected
            assert torch.allclose(found.draft_probs[place], probs, atol=1e-4)
            kept = plain.length(row) - DEPTH + 2
            assert lm.length(row) == plain.length(row)
            for each in (lm, plain):  # one draft token was accepted
                each.keep(row, kept)
    beside = range(max(rows) + 1)
    every = pad([[11, 12]] * len(beside), plain.device)
    ours, theirs = (each.forward(beside, every).logits for each in (lm, plain))
    assert torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_drafts_what_it_would_one_by_one(family: str) -> None:
    model = tiny_model(family)
    lm, plain = (opened(HFCausalLM(model, runtime=name), STARTS) for name in ("compiled", "eager"))
    compare(lm, plain, [0, 1, 3], DraftChain(DEPTH, Sampling(), lm.vocab_size))


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(), FILTERS])
@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3], [0, 2], [2, 1]])
def test_rows_and_distributions(rows: list[int], sampling: Sampling) -> None:
    model = tiny_model("llama")
    lm, plain = (opened(HFCausalLM(model, runtime=name), STARTS) for name in ("compiled", "eager"))
    compare(lm, plain, rows, DraftChain(DEPTH, sampling, lm.vocab_size))


@pytest.mark.parametrize("difference", [-7, 5])
def test_the_verifier_may_have_another_vocabulary(difference: int) -> None:
    model = tiny_model("llama")
    lm, plain = (opened(HFCausalLM(model, runtime=name), STARTS) for name in ("compiled", "eager"))
    compare(lm, plain, [0, 1], DraftChain(DEPTH, Sampling(), lm.vocab_size + difference))


def test_there_is_no_program_for_rows_far_apart() -> None:
    lm = opened(HFCausalLM(tiny_model("llama"), runtime="compiled"), [5] * 8)
    chain = DraftChain(DEPTH, Sampling(), lm.vocab_size)
    text = torch.tensor([[3, 4], [5, 6]])
    assert lm.draft_chain([0, 7], text, [2, 2], chain, [[0.5] * DEPTH] * 2) is None
    assert lm.length(0) == 5


def drafted_with(tree: TreePolicy, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many chains were drafted at once, and compare the text with the one by levels."""
    calls = list[int]()
    own = HFCausalLM.draft_chain

    def counted(self: HFCausalLM, *args: Any) -> DraftedChain | None:
        found = own(self, *args)
        calls.append(found is not None)
        return found

    monkeypatch.setattr(HFCausalLM, "draft_chain", counted)
    model = tiny_model("llama")
    texts = list[list[list[int]]]()
    for runtime in ("compiled", "eager"):
        verifier, draft = (HFCausalLM(each, runtime=runtime) for each in (model, noisy(model)))
        proposer = sd.DraftModel(draft, tree)
        stopping = sd.Stopping(max_new_tokens=12)
        decoder = sd.SpeculativeDecoder(verifier, proposer, sd.Rejection(), sampling, stopping)
        traces = decoder.decode([sd.Request("a", [3, 4, 5]), sd.Request("b", [7])])
        texts.append([list(trace.output_ids) for trace in traces])
    assert texts[0] == texts[1]
    return sum(calls)


@lru_cache
def noisy(model: PreTrainedModel) -> PreTrainedModel:
    return noisy_copy(model, 0.05)


class Cautious(sd.Chain):
    """Draws by a rule of its own."""

    def candidates(
        self, draft_probs: Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        return super().candidates(draft_probs, width, streams)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", [sd.Chain(3), sd.Sampled([1, 1], "iid")])
def test_chains_are_drafted_at_once(
    tree: TreePolicy, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drafted_with(tree, Sampling(temperature), monkeypatch) > 4


@pytest.mark.parametrize(
    ("tree", "sampling"),
    [
        (sd.Chain(3, min_confidence=0.1), Sampling()),
        (sd.Sampled([2, 1], "iid"), Sampling()),
        (Cautious(3), Sampling()),
        (sd.Chain(3), Sampling(repetition_penalty=1.2)),
    ],
)
def test_all_else_is_drafted_level_by_level(
    tree: TreePolicy, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drafted_with(tree, sampling, monkeypatch) == 0
