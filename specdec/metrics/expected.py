"""What a rule accepts on average, at best, instead of another one, and how far it strays.

Where `acceptance` counts what happened, these average over what the rule's noise could have done,
step by step, from probabilities that the rule knew anyway.
"""

from specdec.metrics.columns import GAINED, JUDGED, KNOWN
from specdec.metrics.estimate import Estimate
from specdec.metrics.tally import Tally


def expected_accepted(tally: Tally) -> Estimate:
    """Return the mean over steps of E[A], given the candidates, the rule's noise averaged out.

    It has the mean of `num_accepted` and less noise (Rao-Blackwell), but for stop strings, which it
    does not know: what they cut off is accepted here. Of the steps whose rule says it.
    """
    return tally.ratio("expected_accepted", f"{KNOWN}expected_accepted")


def transport_bound(tally: Tally) -> Estimate | None:
    """Return the most that any rule can make of P(A >= 1) with k i.i.d. draws, mean over steps.

    k is the number of candidates at the root; for one it is the overlap there. A line of reference
    for the first depth of `reached_depth`: candidates drawn without replacement, or fixed in part,
    can do better. (The optimal transport of Sun et al. 2023, SpecTr.) None where none was sampled.
    """
    return _or_none(tally.ratio("bound", "num_bound"))


def total_variation(tally: Tally) -> Estimate | None:
    """Return the mean over emitted tokens of TV from p to the distribution that emitted the token.

    Exact at each visited context: no difference between samples. None for lossless rules.
    """
    return _or_none(tally.ratio("total_variation", "num_divergence"))


def kl(tally: Tally) -> Estimate | None:
    """Return the mean over emitted tokens of KL(emitted || p) in nats; see `total_variation`."""
    return _or_none(tally.ratio("kl", "num_divergence"))


def judged(tally: Tally) -> dict[str, dict[str, Estimate]]:
    """Return for each judge E[A] per step, and how much more that is than the deciding rule's.

    The difference is paired step by step: both saw the very same candidates. A rule that does not
    say its E[A] has none, and no difference.
    """
    names = [name.removeprefix(JUDGED) for name in tally.named(JUDGED)]
    return {
        name: {
            "expected_accepted": tally.ratio(f"{JUDGED}{name}", f"{KNOWN}{JUDGED}{name}"),
            "difference": tally.ratio(f"{GAINED}{name}", f"{KNOWN}{GAINED}{name}"),
        }
        for name in names
    }


def _or_none(estimate: Estimate) -> Estimate | None:
    return None if estimate.value is None else estimate
