import json

import numpy as np
import pytest
from scipy.stats import binom

from specdec.metrics.estimate import (
    MIN_PROMPTS,
    NUM_RESAMPLES,
    Estimate,
    FloatArray,
    Sums,
    bootstrap_weights,
    paired_difference,
    paired_ratio,
    ratio_estimate,
    ratio_estimates,
)


def array(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


def test_weights_are_multinomial_counts_that_depend_on_the_number_of_prompts_only():
    weights = bootstrap_weights(30)
    assert weights.shape == (NUM_RESAMPLES, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert (weights == bootstrap_weights(30)).all()
    # 60000 counts of mean 1 and variance 29/30, with standard errors of about 0 and 0.007.
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(29 / 30, abs=0.04)


def test_value_is_the_ratio_of_sums_and_not_the_mean_of_ratios():
    estimate = ratio_estimate(array(1, 9, 1, 9, 1, 9), array(1, 3, 1, 3, 1, 3))
    assert estimate.value == 10 / 4  # the mean of ratios would be 2
    # One kind of prompt six times is rarer than 2.5 %; five times at one end, once at the other.
    assert estimate.low == pytest.approx((5 * 1 + 9) / (5 * 1 + 3))
    assert estimate.high == pytest.approx((1 + 5 * 9) / (1 + 5 * 3))
    assert estimate.n == 6


@pytest.mark.parametrize("num_prompts", range(1, 9))
def test_fewer_than_six_prompts_have_no_interval(num_prompts: int):
    rng = np.random.default_rng(num_prompts)
    arm, other = (Sums(rng.random(num_prompts), rng.random(num_prompts) + 1) for _ in range(2))
    for estimate in (ratio_estimate(*arm), paired_ratio(arm, other), paired_difference(arm, other)):
        assert estimate.value is not None
        assert (estimate.low is None) == (estimate.high is None) == (num_prompts < MIN_PROMPTS)


def test_prompts_that_do_not_contribute_do_not_count():
    """Of ten prompts five have a denominator, or five are common to both ratios."""
    half, whole = Sums(np.ones(10), array(*[1, 0] * 5)), Sums(np.ones(10), np.ones(10))
    assert ratio_estimate(*half) == Estimate(2.0, None, None, 5)
    assert paired_ratio(half, whole) == Estimate(2.0, None, None, 5)


def test_columns_are_estimated_as_if_alone():
    rng = np.random.default_rng(0)
    numerators, denominators = rng.random((12, 3)), rng.random((12, 3)) + 1
    for column, estimate in enumerate(ratio_estimates(numerators, denominators)):
        alone = ratio_estimate(numerators[:, column], denominators[:, column])
        assert estimate.value == pytest.approx(alone.value, rel=1e-14)
        assert estimate.low == pytest.approx(alone.low, rel=1e-14)
        assert estimate.high == pytest.approx(alone.high, rel=1e-14)


@pytest.mark.parametrize(
    ("numerators", "denominators", "expected"),
    [
        (array(), array(), Estimate(None, None, None, 0)),
        (array(0, 0), array(0, 0), Estimate(None, None, None, 0)),
        (array(3), array(2), Estimate(1.5, None, None, 1)),
        # One of many contributes: its ratio is all that any resample can show.
        (array(0, 3, 0), array(0, 2, 0), Estimate(1.5, None, None, 1)),
    ],
)
def test_what_is_undefined_is_none(
    numerators: FloatArray, denominators: FloatArray, expected: Estimate
):
    assert ratio_estimate(numerators, denominators) == expected


def test_resamples_without_a_denominator_are_left_out():
    # One resample in 700 holds none of the first six prompts; none may turn into nan or inf.
    some, none = np.ones(6), np.zeros(30)
    estimate = ratio_estimate(np.concatenate([1.5 * some, none]), np.concatenate([some, none]))
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (1.5, 1.5, 1.5, 6)


def test_a_row_is_valid_json_and_reads_back():
    unknown = Estimate(None, None, None, 0, "for a reason")
    for estimate in (
        ratio_estimate(array(1, 9), array(1, 3)),
        ratio_estimate(array(), array()),
        unknown,
    ):
        text = json.dumps(estimate.to_row(), allow_nan=False)
        assert Estimate(**json.loads(text)) == estimate


def test_an_arm_against_itself_is_exactly_one_and_zero():
    rng = np.random.default_rng(1)
    arm = Sums(rng.random(37), rng.random(37))
    assert paired_ratio(arm, arm) == Estimate(1.0, 1.0, 1.0, 37)
    assert paired_difference(arm, arm) == Estimate(0.0, 0.0, 0.0, 37)


def test_paired_values_by_hand():
    first, second = Sums(array(4, 8), array(1, 1)), Sums(array(2, 4), array(1, 2))
    assert paired_ratio(first, second).value == 6 / 2
    assert paired_difference(first, second).value == 6 - 2


def test_pairing_removes_what_both_arms_share():
    # Prompts differ by a factor of ten, the arms by a factor of 1.5 within each prompt.
    rng = np.random.default_rng(2)
    ease, ones = rng.uniform(1, 10, 50), np.ones(50)
    slow, fast = Sums(ease, ones), Sums(1.5 * ease * rng.uniform(0.99, 1.01, 50), ones)
    paired = paired_ratio(fast, slow)
    shuffled = paired_ratio(fast, Sums(rng.permutation(ease), ones))
    assert width(paired) < 0.02 < 0.2 < width(shuffled)


def width(estimate: Estimate) -> float:
    assert estimate.high is not None
    assert estimate.low is not None
    return estimate.high - estimate.low


@pytest.mark.parametrize(
    "undefined", [Sums(array(1, 1), array(0, 0)), Sums(array(0, 0), array(1, 1))]
)
def test_a_ratio_over_nothing_is_undefined(undefined: Sums):
    assert paired_ratio(Sums(array(1, 1), array(1, 1)), undefined).value is None


def test_arms_of_different_length_are_refused():
    with pytest.raises(AssertionError, match="paired"):
        paired_ratio(Sums(array(1, 1), array(1, 1)), Sums(array(1), array(1)))


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Simulate 200 experiments of 60 prompts that differ in ease and in length.

    The true coverage is 0.947 (1000 experiments); between 0.94 and 0.95 the chance that an honest
    interval covers fewer than 176 or more than 198 times is below 1e-3. The seed is fixed, so the
    alarm can only be raised by a change of the code. An interval that took the steps for
    independent would cover about half of the time.
    """
    num_experiments, low, high = 200, 0.88, 0.99
    for coverage in (0.94, 0.95):
        too_few = binom.cdf(low * num_experiments - 1, num_experiments, coverage)
        assert too_few + binom.sf(high * num_experiments, num_experiments, coverage) < 1e-3
    rng = np.random.default_rng(3)
    num_covered, num_naive = 0, 0
    for _ in range(num_experiments):
        num_steps = rng.integers(20, 60, 60)
        accepted = rng.binomial(num_steps, rng.beta(4, 2, 60))  # mean 4 / 6
        estimate = ratio_estimate(accepted.astype(float), num_steps.astype(float))
        assert estimate.low is not None
        assert estimate.high is not None
        num_covered += estimate.low <= 4 / 6 <= estimate.high
        rate = accepted.sum() / num_steps.sum()
        naive_error = 1.96 * np.sqrt(rate * (1 - rate) / num_steps.sum())
        num_naive += abs(rate - 4 / 6) <= naive_error
    assert low <= num_covered / num_experiments <= high
    assert num_naive / num_experiments < 0.7  # the negative control
