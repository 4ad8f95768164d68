"""p-values are uniform where nothing differs, small where something does, and Holm's by hand."""

import random

import numpy as np
import pytest
from metric_traces import make_step, make_trace, random_traces
from scipy import stats

from specdec.metrics import Tally, efficiency_p_value, holm, speedup_p_value


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
    assert efficiency_p_value(tally, tally) == speedup_p_value(tally, tally) == 1.0
    one, two = (Tally.of([make_trace(n, make_step(a, 3)) for n in "abc"]) for a in (1, 2))
    assert efficiency_p_value(one, two) == 0.0


def test_one_prompt_tells_nothing():
    one, two = (Tally.of(random_traces(1, 6, 3, seed)) for seed in (0, 1))
    assert efficiency_p_value(one, two) is None


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
