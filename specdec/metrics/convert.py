"""What other tools would print for the same counters; point values, under the tools' own names.

A key whose denominator is 0 is left out: the tools disagree on what to print then (nan, 0, 1, a
crash). What follows the end of a text is not in our traces, and no tool's way of counting it can
be had from them.
"""

from specdec.metrics.columns import AT_RISK, LARGEST, REACHED
from specdec.metrics.tally import Tally


def vllm(tally: Tally) -> dict[str, float]:
    """Return what vLLM logs and what its Prometheus counters are divided into (as fractions).

    * mean_acceptance_length: 1 + accepted tokens / drafts. A draft is a step with draft tokens:
      steps without any, common with n-grams, are not counted, which flatters. One token too many
      is counted where the text ended within the accepted tokens (vllm-project/vllm#56101).
    * draft_acceptance_rate: accepted tokens / draft tokens.
    * acceptance_rate_at_position_i: drafts with more than i accepted tokens / drafts, i from 0;
      unconditional.
    """
    num_drafts = tally.total("num_drafts")
    if not num_drafts > 0:  # none, or unknown
        return {}
    num_accepted = tally.total("num_accepted")
    reached = tally.by_depth(REACHED).sum(axis=0)
    num_drafted = tally.total("num_drafted")
    rate = {"draft_acceptance_rate": num_accepted / num_drafted} if num_drafted > 0 else {}
    return {
        "mean_acceptance_length": 1 + num_accepted / num_drafts,
        **rate,
        **{
            f"acceptance_rate_at_position_{position}": float(num_reached) / num_drafts
            for position, num_reached in enumerate(reached)
        },
    }


def sglang(tally: Tally) -> dict[str, float]:
    """Return SGLang's gauges.

    * spec_accept_length: tokens / verifier forwards, the verifier's own token included.
    * spec_accept_rate: (tokens - forwards) / (forwards * (n_draft - 1)); n_draft is the configured
      size of the tree, root included, here the largest one seen; shorter drafts count as full.
    * spec_accept_rate_with_bonus: what older versions called spec_accept_rate, tokens /
      (forwards * n_draft): the verifier's own token counts above the line, the root below it.

    The length of one request that SGLang puts beside its answer is another number: it counts the
    token that its prefill emitted, too (our prefill emits none).
    """
    num_forwards = tally.total("num_steps")
    if num_forwards == 0:
        return {}
    num_tokens = tally.total("num_emitted")
    rates = {"spec_accept_length": num_tokens / num_forwards}
    num_drafted = float(tally.column(LARGEST).max())
    if num_drafted > 0:
        rates["spec_accept_rate"] = (num_tokens - num_forwards) / (num_forwards * num_drafted)
        rates["spec_accept_rate_with_bonus"] = num_tokens / (num_forwards * (num_drafted + 1))
    return rates


def spec_bench(tally: Tally) -> dict[str, float]:
    """Return what Spec-Bench's speed.py prints for one arm.

    * mean_accepted_tokens: the mean over all steps of the tokens a step adds, the verifier's own
      included (some of its methods also keep what follows the end of the text).
    * tokens_per_second: the mean over prompts of tokens / wall seconds, all turns of a prompt
      together, prefill included. Its speedup is the ratio of two such means, in which the
      baseline's tokens are counted by tokenizing the text again.
    """
    means: dict[str, float] = {}
    num_steps = tally.total("num_steps")
    if num_steps > 0:
        means["mean_accepted_tokens"] = tally.total("num_emitted") / num_steps
    num_tokens = tally.column("num_emitted")
    seconds = tally.column("prefill_seconds") + tally.column("decode_seconds")
    if len(seconds) > 0 and bool((seconds > 0).all()):
        means["tokens_per_second"] = float((num_tokens / seconds).mean())
    return means


def eagle(tally: Tally) -> dict[str, float]:
    """Return the numbers of the EAGLE papers.

    * tau: tokens of one draft-verify cycle, the verifier's own token included, over all cycles.
    * n-alpha, n from 0: the share of draft tokens accepted among those tested whose n
      predecessors in the draft were all accepted, which is our acceptance at depth n + 1. The
      papers measure it on chains, and tau on trees: the two do not belong to one run.
    """
    num_steps = tally.total("num_steps")
    if num_steps == 0:
        return {}
    reached = tally.by_depth(REACHED).sum(axis=0)
    at_risk = tally.by_depth(AT_RISK).sum(axis=0)
    alphas = {
        f"{depth}-alpha": float(num_reached / num_at_risk)
        for depth, (num_reached, num_at_risk) in enumerate(zip(reached, at_risk, strict=True))
        if num_at_risk > 0
    }
    return {"tau": tally.total("num_emitted") / num_steps, **alphas}
