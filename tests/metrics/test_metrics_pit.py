"""The tests of uniformity: exact tails, calibrated p-values, and faults that are found."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from specdec.metrics.pit import (
    MIN_TOKENS,
    FloatArray,
    Uniformity,
    uniformity,
)

Texts = list[FloatArray]


@pytest.mark.parametrize("root_n_times_distance", [0.1, 0.5, 1.0, 1.5, 2.0, 2.5])
def test_kolmogorov_tails(root_n_times_distance: float) -> None:
    """Where a verdict falls, that is below 0.1, the approximation is good to a few percent."""
    n = 2000
    distance = root_n_times_distance / n**0.5
    values = np.clip((np.arange(n) + 1) / n - distance, 0, 1)  # the largest one at every step
    expected = float(stats.kstwo.sf(distance, n))
    assert uniformity([values]).ks == pytest.approx(expected, rel=0.03)


def test_even_numbers_are_called_even() -> None:
    found = uniformity([(np.arange(2000) + 0.5) / 2000])
    assert found.bins == found.ks == 1.0


def test_the_numbers_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).random(5000)
    found = uniformity([values])
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert found.bins == pytest.approx(stats.chisquare(counts).pvalue)
    assert found.ks == pytest.approx(stats.kstest(values, "uniform").pvalue, rel=0.02)
    assert found.pairs is not None
    assert found.p_value == min(1.0, 3 * min(found.bins, found.pairs, found.ks))
    assert (found.num_tokens, found.num_impossible) == (5000, 0)


def samples(draw: Callable[[np.random.Generator, int], FloatArray], seed: int, num: int) -> Texts:
    """Draw `num` tokens in texts of 1 to 60."""
    rng = np.random.default_rng(seed)
    texts: Texts = []
    while (left := num - sum(map(len, texts))) > 0:
        texts.append(draw(rng, min(left, int(rng.integers(1, 61)))))
    return texts


@pytest.mark.parametrize("test", ["bins", "pairs", "ks"])
def test_p_values_are_uniform_for_a_right_sampler(test: str) -> None:
    """Texts end where a token ends them, so that their lengths depend on the numbers."""

    def ended(rng: np.random.Generator, length: int) -> FloatArray:
        values = rng.random(length)
        ends = np.flatnonzero(values > 0.95)
        return values[: ends[0] + 1] if len(ends) else values

    p_values = [getattr(uniformity(samples(ended, seed, 3000)), test) for seed in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert min(p_values) > 1e-4


def flat(rng: np.random.Generator, length: int) -> FloatArray:
    return rng.random(length)


def dependent(rng: np.random.Generator, length: int) -> FloatArray:
    """Each number uniform, but near the one before it in one case of five."""
    values = rng.random(length)
    for place in range(1, length):
        if rng.random() < 0.2:
            values[place] = (values[place - 1] + 0.05 * rng.random()) % 1.0
    return values


FAULTS: dict[str, tuple[Callable[[np.random.Generator, int], FloatArray], str]] = {
    "too_likely": (lambda rng, n: rng.random(n) ** 1.1, "bins"),
    "shifted": (lambda rng, n: rng.random(n) ** 1.1, "ks"),
    "dependent": (dependent, "pairs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str) -> None:
    draw, test = FAULTS[fault]
    found = uniformity(samples(draw, 1, 10_000))
    assert getattr(found, test) < 1e-6, found


def test_dependence_alone_leaves_the_margins_alone() -> None:
    """Numbers that are uniform one by one: only the test of pairs may see that they depend."""
    found = uniformity(samples(dependent, 1, 10_000))
    assert found.bins > 1e-4
    # And a wrong margin alone is not dependence.
    pairs = uniformity(samples(FAULTS["shifted"][0], 1, 10_000)).pairs
    assert pairs is not None
    assert pairs > 1e-4


def test_texts_of_one_token_have_no_neighbours_to_test() -> None:
    values = np.random.default_rng(5).random(2 * MIN_TOKENS)
    found = uniformity([np.array([value]) for value in values])
    assert found.pairs is None
    assert found.p_value == min(1.0, 2 * min(found.bins, found.ks))


def test_impossible_tokens_are_counted() -> None:
    texts = samples(flat, 2, MIN_TOKENS)
    texts[3][0] = texts[5][0] = 1.0
    assert uniformity(texts).num_impossible == 2


def test_tests_together_are_as_strict_as_each() -> None:
    """The smallest of three p-values is below a / 3 in no more than a of all cases."""
    assert Uniformity(1, 0, bins=0.5, pairs=0.01, ks=0.9).p_value == pytest.approx(0.03)
    assert Uniformity(1, 0, bins=0.5, pairs=0.6, ks=0.9).p_value == 1.0
    with_draft = Uniformity(1, 0, bins=0.5, pairs=0.6, ks=0.9, draft=0.01)
    assert with_draft.p_value == pytest.approx(0.04)


def test_numbers_in_the_draft_s_order_are_a_test_of_their_own() -> None:
    texts = samples(flat, 2, 3000)
    leaning = [text**1.2 for text in samples(flat, 3, 3000)]
    found = uniformity(texts, leaning)
    assert replace(found, draft=None) == uniformity(texts)
    assert found.draft == uniformity(leaning).bins < 1e-6 < found.bins


def test_pairs_have_the_degrees_of_their_interaction() -> None:
    """7 x 7 of an 8 x 8 table: rows and columns are tested elsewhere."""
    values = np.random.default_rng(0).random(5000)
    cells = (values * 8).astype(int)
    table = np.zeros((8, 8))
    np.add.at(table, (cells[:-1], cells[1:]), 1)
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    expected = stats.chi2.sf((rest**2).sum() / table.mean(), 7 * 7)
    assert uniformity([values]).pairs == pytest.approx(expected)
