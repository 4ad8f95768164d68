"""Do texts have the verifier's joint distribution? Chi-square over whole texts, and its power.

Marginals of single tokens would miss most misuse of noise, so texts are compared as a whole, each
of them several steps long.

False alarms: `assert_fits` fails with probability FALSE_ALARM if the decoder is right. Seeds are
fixed, so a test that passes goes on to pass until the code draws its numbers differently.
Power: `detectable` tells which bias is found with probability POWER.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from scipy.optimize import brentq
from scipy.stats import chi2, ncx2

from specdec.core.trace import Trace
from tests.support.toy import TextDistribution, Tokens

FALSE_ALARM = 1e-6  # per test
POWER = 0.99
MIN_EXPECTED = 5.0  # cells with less are pooled


class Fit(NamedTuple):
    """How well counted texts fit a distribution."""

    p_value: float
    degrees: int  # of freedom: cells - 1
    impossible: int  # texts that the distribution does not have at all

    @property
    def passes(self) -> bool:
        return self.impossible == 0 and self.p_value >= FALSE_ALARM


def fit(texts: Sequence[Tokens], distribution: TextDistribution) -> Fit:
    """Compare counts with expectations by Pearson's chi-square; rare cells are pooled."""
    counts = Counter(texts)
    impossible = sum(count for text, count in counts.items() if distribution.get(text, 0.0) == 0)
    cells: list[tuple[float, int]] = []
    pooled = (0.0, 0)
    for text, mass in sorted(distribution.items(), key=lambda item: item[1]):
        expected, observed = mass * len(texts) + pooled[0], counts[text] + pooled[1]
        pooled = (0.0, 0)
        if expected < MIN_EXPECTED:
            pooled = (expected, observed)
        else:
            cells.append((expected, observed))
    statistic = sum((observed - expected) ** 2 / expected for expected, observed in cells)
    return Fit(float(chi2.sf(statistic, len(cells) - 1)), len(cells) - 1, impossible)


def detectable(num_texts: int, degrees: int) -> float:
    """Return the total variation that is found with probability POWER.

    A bias e that is spread evenly over the cells has chi-square divergence 4 e^2, hence the
    non-centrality 4 n e^2. A bias that sits in a few cells is found much more easily.
    """
    critical = chi2.isf(FALSE_ALARM, degrees)
    needed = brentq(lambda x: ncx2.sf(critical, degrees, x) - POWER, 1.0, 1e5)
    assert isinstance(needed, float)
    return (needed / (4 * num_texts)) ** 0.5


def assert_fits(traces: Sequence[Trace], distribution: TextDistribution, what: str) -> None:
    result = fit([trace.output_ids for trace in traces], distribution)
    assert result.impossible == 0, f"{what}: {result.impossible} texts have probability 0"
    assert result.p_value >= FALSE_ALARM, (
        f"{what}: they are not distributed as p, chi-square p = {result.p_value:.1e}"
        f" with {result.degrees} degrees of freedom and {len(traces)} texts"
        f" (a right decoder fails here once in {1 / FALSE_ALARM:.0e} times)"
    )


def steps_per_text(traces: Sequence[Trace]) -> float:
    return sum(len(trace.steps) for trace in traces) / len(traces)


def assert_found(traces: Sequence[Trace], distribution: TextDistribution, bug: str) -> None:
    """A negative control: the texts must not pass for texts of this distribution."""
    result = fit([trace.output_ids for trace in traces], distribution)
    assert not result.passes, (
        f"{bug} goes unseen: p = {result.p_value:.1e} with {result.degrees} degrees of freedom"
    )
