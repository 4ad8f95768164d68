"""Does a sampler draw from the distribution it claims? Pooled, randomised probability transforms.

A token x that was drawn from a distribution with cumulative function F gives the number U,
uniform in [F(x^-), F(x)). If every token was drawn from the distribution that is claimed for its
context, the numbers are independent and uniform in [0, 1) whatever the contexts are (Rosenblatt
1952; Smith 1985; for discrete distributions Czado et al. 2009), so that all tokens of all texts can
be pooled: no context has to occur twice, and no second sample is needed for comparison.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FloatArray = NDArray[np.float64]

NUM_BINS = 20
NUM_PAIR_BINS = 8
MIN_TOKENS = 1000  # below this cells hold too few for chi-square, and nothing is found


@dataclass(frozen=True)
class Uniformity:
    """What the tests say about one sample; p-values are uniform for a right sampler."""

    num_tokens: int
    num_impossible: int  # tokens that their distributions do not have at all
    bins: float  # p-value: whether the numbers fill equal bins equally
    pairs: float | None  # p-value: whether neighbours are independent; None: there are too few
    ks: float  # p-value: Kolmogorov and Smirnov's distance from the uniform distribution
    draft: float | None = None  # p-value: equal bins, for tokens in the order of q / p

    @property
    def p_value(self) -> float:
        """That of all tests together: the smallest one, times their number (Bonferroni)."""
        all_tests = (self.bins, self.pairs, self.ks, self.draft)
        known = [p_value for p_value in all_tests if p_value is not None]
        return min(1.0, len(known) * min(known))


def uniformity(
    texts: Sequence[FloatArray],  # of [T] each
    by_draft: Sequence[FloatArray] | None = None,  # of [T] each
) -> Uniformity:
    """Test the numbers of some texts, token by token; a number of 1 marks an impossible token.

    Needs MIN_TOKENS of them. The texts must be independent of each other, and may be as long as
    their tokens have made them (ended by an end token, say): what is tested are martingales.
    `by_draft` are the numbers for tokens in another order, see `specdec.recording.pit_values`.
    """
    values = np.concatenate(texts)
    assert len(values) >= MIN_TOKENS, f"{len(values)} tokens tell nothing"
    return Uniformity(
        num_tokens=len(values),
        num_impossible=int((values >= 1).sum()),
        bins=_bins_p_value(values),
        pairs=_pairs_p_value(texts),
        ks=_ks_p_value(values),
        draft=None if by_draft is None else _bins_p_value(np.concatenate(by_draft)),
    )


def _bins_p_value(values: FloatArray) -> float:  # [n]
    counts = np.bincount(_cells(values, NUM_BINS), minlength=NUM_BINS)
    return float(stats.chisquare(counts).pvalue)


def _pairs_p_value(texts: Sequence[FloatArray]) -> float | None:
    """Test the interaction of (U_t, U_{t+1}) alone: what the rows and columns do not explain.

    Overlapping pairs are not independent, and neither are the cells of their table. The table less
    its margins is a sum of products of mean 0, uncorrelated over cells and time: hence
    (bins - 1)^2 degrees of freedom.
    """
    first = np.concatenate([_cells(text[:-1], NUM_PAIR_BINS) for text in texts])
    second = np.concatenate([_cells(text[1:], NUM_PAIR_BINS) for text in texts])
    if len(first) < MIN_TOKENS:  # of short texts
        return None
    counts = np.bincount(NUM_PAIR_BINS * first + second, minlength=NUM_PAIR_BINS**2)
    table = counts.reshape(NUM_PAIR_BINS, NUM_PAIR_BINS).astype(np.float64)
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float(stats.chi2.sf((rest**2).sum() / table.mean(), (NUM_PAIR_BINS - 1) ** 2))


def _ks_p_value(values: FloatArray) -> float:
    """Take Kolmogorov's limit with the correction of Stephens (1970): good from dozens on."""
    root = math.sqrt(len(values))
    compared = stats.ks_1samp(values, stats.uniform.cdf, method="asymp")
    return float(stats.kstwobign.sf((root + 0.12 + 0.11 / root) * compared.statistic))


def _cells(values: FloatArray, num_cells: int) -> NDArray[np.int64]:
    return np.minimum((values * num_cells).astype(np.int64), num_cells - 1)
