"""p-values are uniform where nothing differs, small where something does, and Holm's by hand."""

import random

import numpy as np
import pytest
from scipy import stats

from specdec.metrics import LEVEL, Tally, efficiency_contrast, holm, holm_levels, speedup_contrast
from tests.support.metric_traces import make_step, make_trace, paced, random_traces


def efficiency_p_value(tally: Tally, reference: Tally) -> float | None:
    return efficiency_contrast(tally, reference).p_value


def noisy(seed: int, num_prompts: int, ease: float) -> Tally:
    rng = random.Random(seed)
    traces = []
    for index in range(num_prompts):
        # What makes a prompt easy is the same in both arms.
        own = random.Random(index).uniform(-0.2, 0.2) + ease
        steps = [make_step(sum(rng.random() < own for _ in range(3)), 3) for _ in range(12)]
        traces.append(make_trace(f"p{index}", *steps))
    return Tally.of(traces)


def test_p_values_of_equal_arms_are_uniform():
    """False alarm 1e-6: Kolmogorov and Smirnov, 300 pairs of arms."""
    found = [
        efficiency_p_value(noisy(2 * seed, 24, 0.5), noisy(2 * seed + 1, 24, 0.5))
        for seed in range(300)
    ]
    assert stats.kstest(found, "uniform").pvalue > 1e-6
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.12


def test_a_difference_is_found():
    found = efficiency_p_value(noisy(0, 40, 0.6), noisy(1, 40, 0.4))
    assert found is not None
    assert found < 1e-6


def test_what_is_the_same_has_one_and_what_always_differs_nought():
    tally = Tally.of(random_traces(8, 6, 3, seed=0))
    timed = paced(1.5, 8, noise=0.1)
    contrast = speedup_contrast(timed, timed)
    assert contrast is not None
    assert efficiency_p_value(tally, tally) == contrast.p_value == 1.0
    one, two = (Tally.of([make_trace(n, make_step(a, 3)) for n in "abcdef"]) for a in (1, 2))
    assert efficiency_p_value(one, two) == 0.0


@pytest.mark.parametrize("num_prompts", range(1, 8))
def test_fewer_than_six_prompts_tell_nothing(num_prompts: int):
    one, two = (Tally.of(random_traces(num_prompts, 6, 3, seed)) for seed in (0, 1))
    contrast = efficiency_contrast(one, two)
    few = num_prompts < 6
    assert (contrast.p_value is None) == few
    assert (contrast.difference().low is None) == (contrast.ratio().low is None) == few


@pytest.mark.parametrize("level", [0.05, 0.01, 0.05 / 7])
def test_intervals_leave_out_nothing_if_and_only_if_p_is_below_their_level(level: float):
    """And the ratio's leaves out 1: a mark must not contradict the interval beside it."""
    resolved = 0
    for seed in range(60):
        one, two = noisy(2 * seed, 8, 0.5), noisy(2 * seed + 1, 8, 0.5 + 0.1 * (seed % 3))
        contrast = efficiency_contrast(one, two)
        difference, ratio = contrast.difference(level), contrast.ratio(level)
        assert contrast.p_value is not None
        for estimate, nothing in ((difference, 0.0), (ratio, 1.0)):
            assert estimate.low is not None
            assert estimate.high is not None
            assert (estimate.low <= nothing <= estimate.high) == (contrast.p_value >= level)
        resolved += contrast.p_value < level
    assert 0 < resolved < 60, "both cases occur"


def test_intervals_of_ratios_cover_as_often_as_they_say():
    """Arms of equal ease: 1 is within the interval 95 times in 100 (200 trials: 180 to 199)."""
    ratios = [
        efficiency_contrast(noisy(2 * seed, 24, 0.5), noisy(2 * seed + 1, 24, 0.5)).ratio()
        for seed in range(200)
    ]
    covered = sum((r.low or 0.0) <= 1 <= (r.high or 0.0) for r in ratios)
    assert 180 <= covered <= 199


@pytest.mark.parametrize("seed", range(20))
def test_the_level_of_holm_is_where_the_adjusted_value_turns(seed: int):
    rng = random.Random(seed)
    p_values = [rng.random() ** 6 for _ in range(rng.randint(1, 9))]
    levels = holm_levels(p_values)
    assert [p < level for p, level in zip(p_values, levels, strict=True)] == [
        adjusted < LEVEL for adjusted in holm(p_values)
    ]
    assert all(LEVEL / len(p_values) <= level <= LEVEL for level in levels)


def test_levels_by_hand():
    assert holm_levels([]) == []
    assert holm_levels([0.2]) == [0.05]
    assert holm_levels([0.001, 0.9, 0.02]) == pytest.approx([0.05 / 3, 0.05, 0.05 / 2])
    assert holm_levels([0.03, 0.03]) == [0.025, 0.025]


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.03, 0.02, 0.01], [0.06, 0.06, 0.06, 0.04]),
        ([0.5, 0.9], [1.0, 1.0]),
    ],
)
def test_holm_by_hand(p_values: list[float], adjusted: list[float]):
    assert holm(p_values) == pytest.approx(adjusted)
