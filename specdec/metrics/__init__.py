"""From traces to numbers with intervals: pure functions that need no model."""

from specdec.metrics.acceptance import (
    acceptance_at_depth,
    acceptance_rate,
    block_efficiency,
    cost_ratio,
    efficiency_difference,
    efficiency_ratio,
    num_accepted,
    overlap,
    reached_depth,
)
from specdec.metrics.estimate import (
    Estimate,
    Sums,
    paired_difference,
    paired_ratio,
    ratio_estimate,
)
from specdec.metrics.expected import (
    expected_accepted,
    judged,
    kl,
    total_variation,
    transport_bound,
)
from specdec.metrics.significance import efficiency_p_value, holm, p_value, speedup_p_value
from specdec.metrics.speed import prefill_seconds, speedup, time_shares, tokens_per_second
from specdec.metrics.summary import DEFINITIONS, summarize
from specdec.metrics.tally import Tally, pooled

__all__ = [
    "DEFINITIONS",
    "Estimate",
    "Sums",
    "Tally",
    "acceptance_at_depth",
    "acceptance_rate",
    "block_efficiency",
    "cost_ratio",
    "efficiency_difference",
    "efficiency_p_value",
    "efficiency_ratio",
    "expected_accepted",
    "holm",
    "judged",
    "kl",
    "num_accepted",
    "overlap",
    "p_value",
    "paired_difference",
    "paired_ratio",
    "pooled",
    "prefill_seconds",
    "ratio_estimate",
    "reached_depth",
    "speedup",
    "speedup_p_value",
    "summarize",
    "time_shares",
    "tokens_per_second",
    "total_variation",
    "transport_bound",
]
