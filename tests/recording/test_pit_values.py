"""Where tokens fall in the verifier's distribution: exactly; uniform for exact draws."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.lm.hf import HFCausalLM
from specdec.recording import pit_values as module
from specdec.recording.pit_values import Decoded, transformed, transforms
from tests.support.families import VOCAB_SIZE, random_ids, tiny_model
from tests.support.toy import Tokens, full_context, markov, table_lm, warped

WARPED = Sampling(0.7, top_p=0.9)


def reference(
    distribution: Sequence[float], token: int, uniform: float, draft: Sequence[float] | None = None
) -> float:
    """Add up p as far as the token: likeliest tokens first, or those of the largest q / p."""
    if distribution[token] == 0:
        return 1.0
    possible = [each for each in range(len(distribution)) if distribution[each] > 0]
    first = {
        each: distribution[each] if draft is None else draft[each] / distribution[each]
        for each in possible
    }
    order = sorted(possible, key=lambda each: (-first[each], each))
    before = sum(distribution[each] for each in order[: order.index(token)])
    return (before + uniform * distribution[token]) / sum(distribution)


def test_tokens_are_placed_in_order_of_their_probability() -> None:
    distribution = [0.2, 0.5, 0.2, 0.1, 0.0]
    distributions = torch.tensor([distribution] * 5)
    uniforms = [0.0, 0.25, 0.5, 0.75, 0.5]
    found = transformed(distributions, range(5), uniforms, order=distributions).tolist()
    assert found == pytest.approx([0.5, 0.125, 0.8, 0.975, 1.0])
    assert found[:4] == pytest.approx([reference(distribution, t, uniforms[t]) for t in range(4)])


def test_tokens_are_placed_in_any_order_that_is_given() -> None:
    distribution, q = [0.2, 0.5, 0.2, 0.1, 0.0], [0.4, 0.1, 0.4, 0.05, 0.05]
    distributions, uniforms = torch.tensor([distribution] * 5), [0.0, 0.25, 0.5, 0.75, 0.5]
    found = transformed(
        distributions, range(5), uniforms, torch.tensor([q] * 5) / distributions
    ).tolist()
    # By q / p: 0 and 2 with 2, then 3 with 0.5, then 1 with 0.2.
    assert found == pytest.approx([0.0, 0.625, 0.3, 0.475, 1.0])
    assert found == pytest.approx([reference(distribution, t, uniforms[t], q) for t in range(5)])


def test_a_distribution_that_sums_to_one_only_nearly_is_divided_by_its_sum() -> None:
    distribution = torch.tensor([[0.2, 0.5, 0.3]])
    found = [
        transformed(scale * distribution, [0], [0.5], distribution).item() for scale in (1.0, 1.001)
    ]
    assert found == pytest.approx([0.9, 0.9], abs=1e-7)


def test_processors_see_the_whole_text_in_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_twice(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, input_ids[:, -1:], float("-inf"))

    verifier, sampling = table_lm(full_context(5, 1.0)), Sampling(processors=[never_twice])
    texts = [Decoded("a", (0,), (1, 2, 1, 0, 2, 1))]
    (whole,) = transforms(texts, verifier, sampling)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 2 * 3)
    (pieces,) = transforms(texts, verifier, sampling)
    assert pieces[0].tolist() == pytest.approx(whole[0].tolist(), abs=1e-6)
    assert bool((whole < 1).all()), "a token came twice in a row: the test is blind"


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
        distributions = sampling.warp(logits).double().tolist()
        expected = [
            reference(distribution, token, stream.uniform())
            for distribution, token in zip(distributions, text.output_ids, strict=False)
        ]
        assert numbers.tolist() == [pytest.approx(expected, abs=1e-4)]


@pytest.mark.parametrize("sampling", [Sampling(), WARPED], ids=["T=1", "warped"])
def test_a_draft_of_a_smaller_vocabulary_gives_the_order(sampling: Sampling) -> None:
    """It reads what it does not know as token 0, and never proposes it."""
    verifier, model = HFCausalLM(tiny_model("llama")), tiny_model("llama", vocab_size=50, seed=3)
    draft = HFCausalLM(model)
    texts = [text for text in texts_of(6) if text.output_ids]
    alone = list(transforms(texts, verifier, sampling, seed=3))
    found = list(transforms(texts, verifier, sampling, seed=3, batch=2, draft=draft))
    longest_first = sorted(texts, key=lambda t: -len(t.prompt_ids) - len(t.output_ids))
    assert any(token >= 50 for text in texts for token in text.output_ids)
    for text, plain, numbers in zip(longest_first, alone, found, strict=True):
        assert numbers[0].tolist() == pytest.approx(plain[0].tolist(), abs=1e-4)
        whole = torch.tensor([[*text.prompt_ids, *text.output_ids]])
        known = whole.where(whole < 50, 0)
        own = slice(len(text.prompt_ids) - 1, -1)
        with torch.inference_mode():
            p = verifier.model(input_ids=whole).logits[0, own]
            q = nn.functional.pad(
                model(input_ids=known).logits[0, own], (0, VOCAB_SIZE - 50), value=float("-inf")
            )
        stream = RandomStream("transforms", 3, text.name)
        rows = zip(sampling.warp(p).tolist(), sampling.warp(q).tolist(), strict=True)
        expected = [
            reference(distribution, token, stream.uniform(), other)
            for (distribution, other), token in zip(rows, text.output_ids, strict=True)
        ]
        assert numbers[1].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), WARPED], ids=["T=1", "warped"])
def test_exact_draws_give_uniform_numbers(sampling: Sampling) -> None:
    """And draws of another temperature do not."""
    distribution = markov(2, full_context(8, 0.5, 6))
    verifier = table_lm(distribution, 6)

    def numbers(drawn_with: Sampling) -> np.ndarray:
        texts = [Decoded(str(n), (0, 1), drawn(drawn_with, n)) for n in range(100)]
        return torch.cat(list(transforms(texts, verifier, sampling)), dim=1)[0].numpy()

    def drawn(drawn_with: Sampling, seed: int) -> list[int]:
        stream, text = RandomStream("text", seed), [0, 1]
        for _ in range(30):
            text.append(stream.choose(warped(distribution, drawn_with)(tuple(text))))
        return text[2:]

    assert stats.kstest(numbers(sampling), "uniform").pvalue > 1e-3
    assert stats.kstest(numbers(Sampling(0.5)), "uniform").pvalue < 1e-6


def test_a_text_that_leans_to_its_draft_shows_in_the_draft_s_order() -> None:
    """One token in three from the draft, whose errors have nothing to do with what is likely."""
    distribution, error = markov(2, full_context(8, 3.0, 6)), markov(2, full_context(9, 1.0, 6))

    def other(context: Tokens) -> Tensor:
        q = distribution(context) * error(context)
        return q / q.sum()

    verifier, draft = table_lm(distribution, 6), table_lm(other, 6)

    def numbers(lean: float) -> np.ndarray:  # [2, T]
        texts = [Decoded(str(n), (0, 1), drawn(lean, n)) for n in range(100)]
        found = list(transforms(texts, verifier, Sampling(), draft=draft))
        return torch.cat(found, dim=1).numpy()

    def drawn(lean: float, seed: int) -> list[int]:
        stream, text = RandomStream("text", seed), [0, 1]
        for _ in range(30):
            p, q = distribution(tuple(text)), other(tuple(text))
            text.append(stream.choose((1 - lean) * p + lean * q))
        return text[2:]

    plain, by_draft = numbers(0.0)
    assert stats.kstest(plain, "uniform").pvalue > 1e-3
    assert stats.kstest(by_draft, "uniform").pvalue > 1e-3
    plain, by_draft = numbers(0.3)
    assert stats.kstest(by_draft, "uniform").pvalue < 1e-6
    assert stats.kstest(plain, "uniform").pvalue > 1e-3


def test_the_noise_is_the_name_s() -> None:
    """Other texts in the batch leave a text's numbers alone; another seed does not."""
    verifier, texts = HFCausalLM(tiny_model("llama")), texts_of(4)

    def of(chosen: Sequence[Decoded], seed: int) -> Tensor:
        return next(iter(transforms(chosen, verifier, Sampling(), seed)))[0]

    longest = max(texts, key=lambda t: len(t.prompt_ids) + len(t.output_ids))
    assert of(texts, 0).tolist() == pytest.approx(of([longest], 0).tolist(), abs=1e-4)
    assert of(texts, 0).tolist() != pytest.approx(of([longest], 1).tolist(), abs=1e-2)
