"""All metrics of one arm as one JSON object, and what each of them means."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from specdec.core.trace import Trace
from specdec.metrics import acceptance, expected, experts, speed
from specdec.metrics.columns import FINISHED
from specdec.metrics.estimate import Estimate
from specdec.metrics.tally import Tally

# One sentence for every key of `summarize`, and for the metrics that need a second arm.
DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "block_efficiency": "Emitted tokens / verifier calls (tau): the verifier's own token "
        "included, prefill excluded.",
        "num_accepted": "Accepted draft tokens of one step, the verifier's own token excluded.",
        "expected_accepted": "Mean over steps of E[A] given the candidates: num_accepted with the "
        "rule's noise averaged out; null if the rule does not say it.",
        "acceptance_rate": "Accepted / drafted tokens; chains only, otherwise null.",
        "acceptance_at_depth": "P(A >= d given A >= d-1) over the steps at risk: a candidate at "
        "depth d was submitted and the text had not ended above it.",
        "reached_depth": "P(A >= d) over all steps, whatever they submitted.",
        "overlap": "Mean of sum_v min(p, q) over visited nodes with candidates (alpha) "
        "= 1 - TV(p, q); of fixed candidates: their p together.",
        "transport_bound": "The most that any rule can make of P(A >= 1) with k i.i.d. draws, k as "
        "many as the root has candidates: mean over steps with sampled ones; null without. "
        "reached_depth[1] is what came of it.",
        "total_variation": "Mean over emitted tokens of TV from the verifier's distribution to "
        "the one that the token was emitted by; null for lossless rules.",
        "kl": "Mean over emitted tokens of KL (nats) of the distribution that the token was "
        "emitted by from the verifier's; null for lossless rules.",
        "judged": "For each judge, a rule that was shown the same candidates and decided nothing: "
        "its E[A] per step, and the paired difference to the deciding rule's.",
        "difference": "block_efficiency minus that of the reference arm on the same prompts, "
        "paired; the best arm, unless one is named. Its interval is at the level at which Holm's "
        "method tests it, wider the more arms there are: it holds 0 if and only if the arm is "
        "marked =.",
        "ratio": "block_efficiency over that of the reference arm on the same prompts, paired; its "
        "interval is at the level of the difference's.",
        "p_value": "Of no difference to the reference arm, adjusted for the number of arms (Holm).",
        "cost_ratio": "Draft seconds of one step / verifier seconds of a one-token forward, the "
        "latter from the clock (see speedup).",
        "tokens_per_second": "Emitted tokens / seconds of all steps, prefill excluded (but for the "
        "first look of ngram and of heads with prefix attention at a prompt).",
        "speedup": "tokens_per_second (prefill excluded) over that of one token at a time "
        "(proposer=none) on the same prompts, paired: tau / step_cost. The clock are plain steps: "
        "in a comparison those of the arm proposer=none, interleaved; elsewhere a few that are "
        "timed beside each job, in the middle of its own texts, at the same batch; of a replay "
        "those that its costs predict. Null, with a reason, without a clock, and where it would "
        "exceed tau.",
        "step_cost": "Seconds of a step over those of a plain step (see speedup): at least 1, "
        "since a step reads no less.",
        "regret": "Seconds per token over those of the best arm of a fixed depth, less 1, paired: "
        "what an arm that chooses its depths (pace=adaptive) could have saved with hindsight. "
        "proposer=none counts as depth 0. Of replays with costs.",
        "prefill_seconds": "Mean seconds of prefill (verifier and proposer) of one turn.",
        "time_shares": "Share of the steps' seconds spent on drafting (propose), the verifier's "
        "forward (verify), the rest (other) and, where the proposer learns (online=distil), on "
        "that (learn), which is in every speed.",
        "peak_memory_bytes": "The most memory that was in use while decoding: what torch allocated "
        "on the GPU, else the resident memory of the process; null where arms share a process.",
        "reread_share": "Share of the steps' seconds that went into tokens that the verifier read "
        "once more, since recurrent states cannot be rewound; a forward's seconds are shared out "
        "over its tokens. Only of such verifiers.",
        "compile_seconds": "Seconds that compilers and captures of graphs took in this process: in "
        "no step's seconds, and in no speed; null where arms share a process.",
        "experts_touched": "Distinct experts that a sparse layer of the verifier took in one "
        "forward, for all roots and draft tokens that it read, those of other requests in flight "
        "included: the mean over layers and steps; of runs that count them (experts=true).",
        "experts_at_tokens": "experts_touched by the number of tokens that the forward read: the "
        "roots and draft tokens of all requests in flight.",
        "num_prompts": "Prompts: the units that the bootstrap resamples.",
        "num_turns": "Decoded texts: one a prompt unless it has several turns or samples.",
        "num_steps": "Verifier calls, prefill excluded.",
        "num_emitted": "Tokens that became text.",
        "num_drafted": "Draft tokens submitted to the verifier.",
        "num_accepted_tokens": "Draft tokens that became text, over all steps.",
        "draft_calls": "Forwards of the draft model or heads that each text would need alone, "
        "prefill excluded; a batch shares them.",
        "num_skipped": "Prompts that are left out, since they are too long.",
        "num_truncated": "Texts that continue the end of a prompt, which was cut.",
        "num_unanswered": "Later turns that ended at once, without a token: the answers before "
        "them fill the context, or the chat template does not take them.",
        "finish_reasons": "Texts by why they ended: eos, stop (a stop string), length, "
        "context (the verifier's is full) or refused (by the chat template, a later turn).",
    }
)


def summarize(tally: Tally | Sequence[Trace]) -> dict[str, Any]:
    """Compute every metric that needs no second arm; `docs/guarantees-and-definitions.md` has them.

    Args:
        tally: sums over texts, or the traces themselves.

    Returns:
        Each metric as {value, low, high, n}, with the ends of its 95% interval and the number of
        prompts, and the counters. The keys of depths are strings, as JSON wants them. A metric that
        is undefined for these sums is null, or has a null value, with a `reason` where its number
        would mislead. What is not known of every step is null, too.

    Raises:
        UserError: these are no traces.
    """
    if not isinstance(tally, Tally):
        tally = Tally.of(tally)
    return {
        "block_efficiency": acceptance.block_efficiency(tally).to_row(),
        "num_accepted": acceptance.num_accepted(tally).to_row(),
        "expected_accepted": expected.expected_accepted(tally).to_row(),
        "acceptance_rate": _row(acceptance.acceptance_rate(tally)),
        "acceptance_at_depth": _rows(acceptance.acceptance_at_depth(tally)),
        "reached_depth": _rows(acceptance.reached_depth(tally)),
        "overlap": acceptance.overlap(tally).to_row(),
        "transport_bound": _row(expected.transport_bound(tally)),
        "total_variation": _row(expected.total_variation(tally)),
        "kl": _row(expected.kl(tally)),
        "judged": {name: _rows(each) for name, each in expected.judged(tally).items()},
        "tokens_per_second": speed.tokens_per_second(tally).to_row(),
        "speedup": speed.speedup(tally).to_row(),
        "step_cost": speed.step_cost(tally).to_row(),
        "cost_ratio": speed.cost_ratio(tally).to_row(),
        "prefill_seconds": speed.prefill_seconds(tally).to_row(),
        "time_shares": _rows(speed.time_shares(tally)),
        **_experts(tally),
        **_reread(tally),
        **_counters(tally),
    }


def _experts(tally: Tally) -> dict[str, Any]:
    """Return what was counted; most runs count none, and say nothing of it."""
    touched = experts.experts_touched(tally)
    if touched is None:
        return {}
    by_tokens = _rows(experts.experts_at_tokens(tally))
    return {"experts_touched": touched.to_row(), "experts_at_tokens": by_tokens}


def _reread(tally: Tally) -> dict[str, Any]:
    share = speed.reread_share(tally)
    return {} if share is None else {"reread_share": share.to_row()}


def _counters(tally: Tally) -> dict[str, Any]:
    names = ("num_turns", "num_steps", "num_emitted", "num_drafted")
    reasons = {name.removeprefix(FINISHED): tally.total(name) for name in tally.named(FINISHED)}
    return {
        "num_prompts": tally.num_prompts,
        **{name: tally.count(name) for name in names},
        "num_accepted_tokens": tally.count("num_accepted"),
        "draft_calls": tally.count("draft_calls"),
        "finish_reasons": {name: int(n) for name, n in sorted(reasons.items()) if n},
    }


def _row(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_row()


def _rows(estimates: Mapping[int, Estimate] | Mapping[str, Estimate]) -> dict[str, Any]:
    return {str(key): estimate.to_row() for key, estimate in estimates.items()}
