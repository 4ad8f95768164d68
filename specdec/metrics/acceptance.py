"""How many draft tokens survive, and what one of them costs.

A is the number of accepted draft tokens of a step, the verifier's own token excluded.
"""

from collections.abc import Sequence

import numpy as np

from specdec.metrics.columns import AT_RISK, REACHED
from specdec.metrics.estimate import Estimate, ratio_estimates
from specdec.metrics.tally import Tally


def block_efficiency(tally: Tally) -> Estimate:
    """Return tau: emitted tokens / verifier calls, the verifier's own token included.

    Counts text only: nothing that follows the end of a text is emitted. (Sun et al. 2023; the
    mean number of tokens per call of Leviathan et al. 2023.)
    """
    return tally.ratio("num_emitted", "num_steps")


def num_accepted(tally: Tally) -> Estimate:
    """Return the mean of A over steps."""
    return tally.ratio("num_accepted", "num_steps")


def acceptance_rate(tally: Tally) -> Estimate | None:
    """Return accepted / drafted tokens, or None where that says nothing.

    Only for chains: siblings in a tree exclude each other, so that more of them lower the rate
    while they raise A. None as well where nothing was drafted.
    """
    estimate = tally.ratio("num_accepted", "num_drafted")
    return None if tally.total("num_branched") or estimate.value is None else estimate


def acceptance_at_depth(tally: Tally) -> dict[int, Estimate]:
    """Return P(A >= d given A >= d-1) by depth d = 1, 2, ... up to the deepest draft token.

    The denominator counts the steps at risk (Kaplan and Meier 1958): those with A >= d-1 that
    submitted a candidate at depth d. A step whose text ended at depth A says nothing about deeper
    candidates: it is censored there, not a rejection. In a tree a step is at risk wherever the
    tree has a candidate, even if not below the accepted path: to have none there is a miss too.
    """
    return _numbered(ratio_estimates(tally.by_depth(REACHED), tally.by_depth(AT_RISK)))


def reached_depth(tally: Tally) -> dict[int, Estimate]:
    """Return P(A >= d) over all steps, by depth d = 1, 2, ... up to the deepest draft token.

    Unlike `acceptance_at_depth` this mixes how good the candidates are with how many there were.
    """
    reached = tally.by_depth(REACHED)
    num_steps = tally.column("num_steps")[:, None]
    return _numbered(ratio_estimates(reached, np.tile(num_steps, reached.shape[1])))


def overlap(tally: Tally) -> Estimate:
    """Return alpha: the mean of sum_v min(p, q) over the visited nodes with candidates.

    It is 1 - TV(p, q), the acceptance probability of one draft token (Leviathan et al. 2023,
    their beta), and belongs to the pair of models and the contexts, not to the chain's length.
    """
    return tally.ratio("overlap", "num_overlap")


def _numbered(estimates: Sequence[Estimate]) -> dict[int, Estimate]:
    return dict(enumerate(estimates, start=1))
