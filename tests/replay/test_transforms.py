"""Where tokens fall in the verifier's law: exactly, whatever the batch; uniform for exact draws."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from families import VOCAB_SIZE, random_ids, tiny_model
from scipy import stats
from torch import Tensor
from toy import full_context, markov, table_lm, warped

from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.lm.hf import HFCausalLM
from specdec.replay import transforms as module
from specdec.replay.transforms import Decoded, transformed, transforms

WARPED = Sampling(0.7, top_p=0.9)


def reference(law: Sequence[float], token: int, uniform: float) -> float:
    """Add up the law, likeliest tokens first, as far as the token."""
    order = sorted(range(len(law)), key=lambda each: (-law[each], each))
    before = sum(law[each] for each in order[: order.index(token)])
    return (before + uniform * law[token]) / sum(law)


def test_tokens_are_placed_in_order_of_their_probability() -> None:
    law = [0.2, 0.5, 0.2, 0.1, 0.0]
    laws = torch.tensor([law] * 5)
    uniforms = [0.0, 0.25, 0.5, 0.75, 0.5]
    found = transformed(laws, range(5), uniforms).tolist()
    assert found == pytest.approx([0.5, 0.125, 0.8, 0.975, 1.0])
    assert found[:4] == pytest.approx([reference(law, t, uniforms[t]) for t in range(4)])


def texts_of(num: int, seed: int = 0) -> list[Decoded]:
    """Make prompts and outputs of many lengths, one of them without any output."""
    lengths = [(1 + (3 * n) % 7, (5 * n) % 13) for n in range(num)]
    return [
        Decoded(f"text {n}", random_ids(prompt, seed + n), random_ids(output, seed + 100 + n))
        for n, (prompt, output) in enumerate(lengths)
    ]


@pytest.mark.parametrize("sampling", [Sampling(), WARPED], ids=["T=1", "warped"])
@pytest.mark.parametrize("logits_at_once", [1 << 25, 3 * VOCAB_SIZE], ids=["whole", "in_chunks"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_is_read_as_plain_text(
    batch: int, logits_at_once: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers as from one stock forward for each text."""
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", logits_at_once)
    model = tiny_model("llama")
    texts = texts_of(6)
    found = list(transforms(texts, HFCausalLM(model), sampling, seed=3, batch=batch))
    longest_first = sorted(texts, key=lambda t: -len(t.prompt_ids) - len(t.output_ids))
    for text, numbers in zip(longest_first, found, strict=True):
        whole = torch.tensor([[*text.prompt_ids, *text.output_ids]])
        with torch.inference_mode():
            logits = model(input_ids=whole).logits[0, len(text.prompt_ids) - 1 : -1]
        stream = RandomStream("transforms", 3, text.name)
        laws = sampling.warp(logits).double().tolist()
        expected = [
            reference(law, token, stream.uniform())
            for law, token in zip(laws, text.output_ids, strict=False)
        ]
        assert numbers.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), WARPED], ids=["T=1", "warped"])
def test_exact_draws_give_uniform_numbers(sampling: Sampling) -> None:
    """And draws of another temperature do not."""
    law = markov(2, full_context(8, 0.5, 6))
    verifier = table_lm(law, 6)

    def numbers(drawn_with: Sampling) -> np.ndarray:
        texts = [Decoded(str(n), (0, 1), drawn(drawn_with, n)) for n in range(100)]
        return torch.cat(list(transforms(texts, verifier, sampling))).numpy()

    def drawn(drawn_with: Sampling, seed: int) -> list[int]:
        stream, text = RandomStream("text", seed), [0, 1]
        for _ in range(30):
            text.append(stream.choose(warped(law, drawn_with)(tuple(text))))
        return text[2:]

    assert stats.kstest(numbers(sampling), "uniform").pvalue > 1e-3
    assert stats.kstest(numbers(Sampling(0.5)), "uniform").pvalue < 1e-6


def test_the_noise_is_the_name_s() -> None:
    """Other texts in the batch leave a text's numbers alone; another seed does not."""
    verifier, texts = HFCausalLM(tiny_model("llama")), texts_of(4)

    def of(chosen: Sequence[Decoded], seed: int) -> Tensor:
        return next(iter(transforms(chosen, verifier, Sampling(), seed)))

    longest = max(texts, key=lambda t: len(t.prompt_ids) + len(t.output_ids))
    assert of(texts, 0).tolist() == pytest.approx(of([longest], 0).tolist(), abs=1e-4)
    assert of(texts, 0).tolist() != pytest.approx(of([longest], 1).tolist(), abs=1e-2)
