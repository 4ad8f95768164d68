"""`Sampling.warp` is what transformers does; `draw` inverts the cumulative distribution exactly."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling, draw

FALSE_ALARM = 1e-6  # of each statistical test here; the seeds are fixed, so none is flaky
LAST_UNIFORM = 1 - 2**-53  # the largest number that `random.random()` returns


# --- warp against transformers ------------------------------------------------------------------


def by_transformers(sampling: Sampling, logits: Tensor) -> Tensor:  # [B, V] -> [B, V]
    """Compose transformers' own processors, in the order in which `generate` has them."""
    processors = LogitsProcessorList()
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        processors.append(MinPLogitsWarper(sampling.min_p))
    known: Any = torch.zeros(len(logits), 1, dtype=torch.int64)
    return processors(known, logits).softmax(dim=-1)


GRID = [
    Sampling(temperature, top_k, top_p, min_p)
    for temperature, top_k, top_p, min_p in product(
        (0.3, 1.0, 1.7), (0, 1, 5, 1000), (1.0, 0.9, 0.35, 1e-9), (0.0, 0.05, 0.5, 1.0)
    )
]


def random_logits(seed: int, num_rows: int = 16, vocab_size: int = 37) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, num_rows)[:, None]  # from nearly flat to nearly certain
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warp_is_what_transformers_does(dtype: torch.dtype) -> None:
    logits = random_logits(seed=0).to(dtype)
    for sampling in GRID:
        found, expected = sampling.warp(logits), by_transformers(sampling, logits)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-7, msg=lambda text, s=sampling: f"{s}: {text}"
        )
        assert torch.equal(found > 0, expected > 0), f"{sampling} keeps other tokens"


def test_the_grid_filters_at_every_stage() -> None:
    """Otherwise the comparison above would hold for a warp that forgets a filter."""
    logits = random_logits(seed=0)
    for only in (Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.05)):
        assert bool((only.warp(logits) == 0).any()), f"{only} drops nothing here"
    together = Sampling(0.3, 5, 0.9, 0.05).warp(logits)
    assert not torch.equal(together > 0, Sampling(1.7, 5, 0.9, 0.05).warp(logits) > 0), (
        "the temperature must act before the filters, or it does not change what they keep"
    )


@pytest.mark.parametrize("sampling", [Sampling(top_k=2), Sampling(0.5, 2, 1.0, 0.1)], ids=str)
def test_ties_at_the_top_k_threshold_all_stay(sampling: Sampling) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, -1.0], [5.0, 5.0, 5.0, 5.0, 5.0, 5.0]])
    found = sampling.warp(logits)
    torch.testing.assert_close(found, by_transformers(sampling, logits))
    assert (found > 0).sum(dim=-1).tolist() == [4, 6]


def test_ties_are_cut_by_top_p_as_transformers_cuts_them() -> None:
    """Which one of equal tokens falls is arbitrary; how many fall, and what is left, is not."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 4, (64, 23), generator=generator).float()
    for sampling in GRID:
        found, expected = sampling.warp(logits), by_transformers(sampling, logits)
        torch.testing.assert_close(
            found.sort(dim=-1).values,
            expected.sort(dim=-1).values,
            rtol=1e-5,
            atol=1e-7,
            msg=lambda text, s=sampling: f"{s}: {text}",
        )


def test_of_equally_likely_tokens_the_first_stay_whatever_stands_beside_them() -> None:
    """The distribution after a context may not depend on the shape of its batch."""
    row = torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 0.0])
    distribution = Sampling(top_p=0.75).warp(row)
    assert distribution.nonzero().flatten().tolist() == [0, 1, 2, 3]
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(3, 5, 8, generator=generator)
    batch[1, 2] = row
    assert Sampling(top_p=0.75).warp(batch)[1, 2].tolist() == distribution.tolist()


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4)])
def test_top_p_stops_as_soon_as_its_mass_is_reached(top_p: float, kept: int) -> None:
    """Four tokens of exactly 1/4: two of them are a mass of 0.5, and a third is too much."""
    logits = torch.zeros(1, 4)
    assert int((Sampling(top_p=top_p).warp(logits) > 0).sum()) == kept
    assert int((by_transformers(Sampling(top_p=top_p), logits) > 0).sum()) == kept


def test_every_distribution_adds_up_to_one_and_keeps_the_likeliest_token() -> None:
    logits = random_logits(seed=2)
    for sampling in [*GRID, Sampling(0)]:
        probs = sampling.warp(logits)
        torch.testing.assert_close(probs.sum(dim=-1), torch.ones(len(logits)))
        best = probs.gather(-1, logits.argmax(dim=-1, keepdim=True))
        assert bool((best > 0).all()), f"{sampling} dropped an arg max"


def test_warp_reads_every_row_by_itself_whatever_the_shape() -> None:
    logits = random_logits(seed=3, num_rows=12).view(2, 3, 2, 37)
    for sampling in (Sampling(0.7, 5, 0.8, 0.1), Sampling(0)):
        found = sampling.warp(logits).reshape(12, 37)
        for row, alone in zip(found, logits.reshape(12, 37), strict=True):
            torch.testing.assert_close(row, sampling.warp(alone))


def test_warp_leaves_the_logits_alone() -> None:
    logits = random_logits(seed=4)
    before = logits.clone()
    for sampling in (Sampling(0), Sampling(), Sampling(0.5, 3, 0.9, 0.1)):
        sampling.warp(logits)
        assert torch.equal(logits, before), f"{sampling} wrote into the model's logits"


def test_tokens_that_are_ruled_out_stay_ruled_out() -> None:
    """A draft with a narrower vocabulary has logits of -inf at the end."""
    logits = torch.tensor([0.0, float("-inf"), 1.0, float("-inf")])
    for sampling in [*GRID, Sampling(0), Sampling(1e-30)]:
        probs = sampling.warp(logits)
        assert probs[[1, 3]].tolist() == [0.0, 0.0], f"{sampling}: {probs}"
        assert bool(probs.isfinite().all()), f"{sampling}: {probs}"


# --- temperature 0 and the way there ------------------------------------------------------------


def test_temperature_zero_is_the_arg_max_and_the_first_of_ties() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 4.0], [7.0, 7.0, 7.0, 7.0], [-3.0, -2.0, -9.0, -2.0]])
    probs = Sampling(temperature=0).warp(logits)
    assert probs.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert probs.dtype == torch.float32


def test_filters_change_nothing_at_temperature_zero() -> None:
    logits = random_logits(seed=5)
    greedy = Sampling(0).warp(logits)
    for sampling in (Sampling(0, 3), Sampling(0, 0, 0.01), Sampling(0, 0, 1.0, 1.0)):
        assert torch.equal(sampling.warp(logits), greedy), f"{sampling} is not greedy"


@pytest.mark.parametrize("temperature", [1e-4, 1e-8, 1e-30, 1e-38])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_greedy_is_the_limit_of_small_temperatures(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[12.0, -5.0, 11.5, 0.0], [-30.0, -31.0, -29.0, -400.0]], dtype=dtype)
    for sampling in (Sampling(temperature), Sampling(temperature, 3, 0.9, 0.1)):
        probs = sampling.warp(logits)
        assert bool(probs.isfinite().all()), f"{sampling}: {probs}"
        torch.testing.assert_close(probs, Sampling(0).warp(logits))


def test_ties_share_the_mass_at_any_small_temperature() -> None:
    probs = Sampling(1e-30).warp(torch.tensor([2.0, 5.0, 5.0]))
    assert probs.tolist() == [0.0, 0.5, 0.5]


def test_no_temperature_is_too_small() -> None:
    probs = Sampling(1e-46).warp(torch.tensor([1.0, 2.0, 3.0]))
    assert probs.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_warped_in_float32(dtype: torch.dtype) -> None:
    logits = random_logits(seed=6, vocab_size=500).to(dtype)
    for sampling in (Sampling(), Sampling(0), Sampling(0.6, 40, 0.9, 0.02)):
        found = sampling.warp(logits)
        assert found.dtype == torch.float32
        assert torch.equal(found, sampling.warp(logits.float())), (
            f"{sampling}: computed in {dtype}, whose sums are too coarse for a vocabulary"
        )


# --- bad options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.5"),
        ("temperature", None),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", 2.0),
        ("top_k", True),
        ("top_k", "5"),
        ("top_k", None),
        ("top_p", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", -0.5),
        ("top_p", float("nan")),
        ("top_p", "0.9"),
        ("min_p", 2),
        ("min_p", -0.01),
        ("min_p", float("nan")),
        ("min_p", "0"),
    ],
)
def test_a_bad_option_is_named_with_its_value(field: str, value: object) -> None:
    options: dict[str, Any] = {field: value}
    with pytest.raises(UserError) as caught:
        Sampling(**options)
    message = str(caught.value)
    assert message.startswith(f"{field}={value!r}: expected "), message
    assert "\n" not in message


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 1}, {"min_p": 1}, {"top_k": 0}])
def test_integers_do_where_numbers_are_expected(options: dict[str, Any]) -> None:
    Sampling(**options)


# --- draw ---------------------------------------------------------------------------------------


def drawn(weights: list[float] | Tensor, uniform: float) -> int:
    if not isinstance(weights, Tensor):
        weights = torch.tensor(weights)
    return int(draw(weights, uniform))


BELOW = math.nextafter(0.25, 0), math.nextafter(0.75, 0)


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (BELOW[0], 0), (0.25, 1), (BELOW[1], 1), (0.75, 2), (LAST_UNIFORM, 2)],
)
@pytest.mark.parametrize("scale", [1.0, 8.0, 2.0**-40], ids=["normed", "larger", "smaller"])
def test_draw_inverts_the_cumulative_distribution(uniform: float, token: int, scale: float) -> None:
    """Token v owns [F(v - 1), F(v)) of the uniforms, whatever the weights add up to."""
    assert drawn([0.25 * scale, 0.5 * scale, 0.25 * scale], uniform) == token


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.3, 0.5, LAST_UNIFORM])
def test_a_token_of_weight_zero_is_never_drawn(uniform: float) -> None:
    """Zeros in front, within and behind; at the ends of the unit interval they are next in line."""
    for weights in ([0.0, 0.0, 0.3, 0.0, 0.7, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1e-30, 0.0]):
        token = drawn(weights, uniform)
        assert weights[token] > 0, f"weights {weights}, u={uniform}: drew token {token}"


def test_rounding_never_reaches_the_zeros_at_the_end() -> None:
    """u * total must stay below the total for any total: behind it, there may be zeros only."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.rand(2000, 6, generator=generator, dtype=torch.float64)
    weights *= torch.logspace(-20, 20, 2000, dtype=torch.float64)[:, None]
    weights[:, 4:] = 0.0
    tokens = draw(weights, torch.full((2000, 1), LAST_UNIFORM, dtype=torch.float64))
    assert tokens.unique().tolist() == [3], "u=1-2**-53 drew a token of weight zero"
    first = draw(weights.flip(-1), torch.zeros(2000, 1, dtype=torch.float64))
    assert first.unique().tolist() == [2], "u=0 drew a token of weight zero"


def test_draw_takes_any_batch_shape_and_several_uniforms_a_row() -> None:
    generator = torch.Generator().manual_seed(8)
    probs = torch.rand(2, 3, 5, generator=generator)
    uniforms = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    tokens = draw(probs, uniforms)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [
        [[drawn(probs[i, j], u) for u in uniforms[i, j].tolist()] for j in range(3)]
        for i in range(2)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_mass_1e_9_in_a_large_vocabulary_gets_its_interval(dtype: torch.dtype) -> None:
    """Sums of 24 bits step by 6e-8 near one: the rare token would own nothing, or too much."""
    vocab_size, rare = 100_000, 99_998
    probs = torch.full((vocab_size,), (1 - 1e-9) / (vocab_size - 1), dtype=dtype)
    probs[rare] = 1e-9
    exact = [math.fsum(probs[:n].tolist()) for n in (rare, rare + 1, vocab_size)]
    low, high = exact[0] / exact[2], exact[1] / exact[2]
    inside = [low + share * (high - low) for share in (0.01, 0.5, 0.99)]
    assert [drawn(probs, u) for u in inside] == [rare] * 3, "the tail token lost its interval"
    assert drawn(probs, low - 1e-12) == rare - 1
    assert drawn(probs, high + 1e-12) == rare + 1


@pytest.mark.parametrize("scale", [1.0, 37.5])
def test_frequencies_are_the_weights(scale: float) -> None:
    """Chi-square of 200 000 draws from 50 tokens; false alarms: FALSE_ALARM."""
    generator = torch.Generator().manual_seed(9)
    probs = torch.rand(50, generator=generator, dtype=torch.float64) ** 3
    probs[[0, 20, 49]] = 0.0
    uniforms = torch.rand(200_000, generator=generator, dtype=torch.float64)
    counts = draw(probs * scale, uniforms).bincount(minlength=50)
    assert counts[probs == 0].tolist() == [0, 0, 0]
    possible = probs > 0
    expected = (probs / probs.sum() * len(uniforms))[possible]
    p_value = chisquare(counts[possible].numpy(), expected.numpy()).pvalue
    assert p_value > FALSE_ALARM, f"p={p_value:.1e}: draws are not distributed as the weights"
