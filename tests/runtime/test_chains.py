"""Chains that a model drafts by one program: the tokens that it would draft one by one."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from specdec.core.draft_chain import DraftChain
from specdec.core.sampling import Sampling
from specdec.lm.batch import pad
from specdec.lm.hf import HFCausalLM
from tests.runtime.test_programs import opened
from tests.support.families import FAMILIES, tiny_model
from tests.support.uncompiled import uncompiled_steps

DEPTH = 3
STARTS = [5, 9, 3, 12]
FILTERS = Sampling(temperature=0.7, top_k=30, top_p=0.9, min_p=0.01)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.hf.steps_of", uncompiled_steps)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


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
    every = pad([[11, 12]] * len(STARTS), plain.device)
    ours, theirs = (each.forward(range(len(STARTS)), every).logits for each in (lm, plain))
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
