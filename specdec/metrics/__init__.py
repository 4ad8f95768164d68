"""From traces to numbers with intervals: pure functions that need no model."""

from specdec.metrics.acceptance import (
    acceptance_at_depth,
    acceptance_rate,
    block_efficiency,
    num_accepted,
    overlap,
    reached_depth,
)
from specdec.metrics.estimate import (
    MIN_PROMPTS,
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
from specdec.metrics.experts import experts_at_tokens, experts_touched
from specdec.metrics.significance import LEVEL, Contrast, efficiency_contrast, holm, holm_levels
from specdec.metrics.speed import (
    cost_ratio,
    incomparable,
    prefill_seconds,
    regret,
    speedup,
    speedup_contrast,
    step_cost,
    time_shares,
    tokens_per_second,
)
from specdec.metrics.summary import DEFINITIONS, summarize
from specdec.metrics.tally import Tally, mean_tally, pooled

__all__ = [
    "DEFINITIONS",
    "LEVEL",
    "MIN_PROMPTS",
    "Contrast",
    "Estimate",
    "Sums",
    "Tally",
    "acceptance_at_depth",
    "acceptance_rate",
    "block_efficiency",
    "cost_ratio",
    "efficiency_contrast",
    "expected_accepted",
    "experts_at_tokens",
    "experts_touched",
    "holm",
    "holm_levels",
    "incomparable",
    "judged",
    "kl",
    "mean_tally",
    "num_accepted",
    "overlap",
    "paired_difference",
    "paired_ratio",
    "pooled",
    "prefill_seconds",
    "ratio_estimate",
    "reached_depth",
    "regret",
    "speedup",
    "speedup_contrast",
    "step_cost",
    "summarize",
    "time_shares",
    "tokens_per_second",
    "total_variation",
    "transport_bound",
]
