"""How many experts of a sparse verifier steps took, which is what larger trees cost there."""

from specdec.metrics.columns import COUNTED_AT, EXPERTS, EXPERTS_AT, KNOWN
from specdec.metrics.estimate import Estimate
from specdec.metrics.tally import Tally


def experts_touched(tally: Tally) -> Estimate | None:
    """Return the mean over layers and steps of the distinct experts; None where none were counted.

    A forward is shared by all requests in flight, and is a step of each.
    """
    known = f"{KNOWN}{EXPERTS}"
    return tally.ratio(EXPERTS, known) if tally.total(known) else None


def experts_at_tokens(tally: Tally) -> dict[int, Estimate]:
    """Return the same by the tokens that a forward read, in ascending order."""
    sizes = sorted(int(name.removeprefix(COUNTED_AT)) for name in tally.named(COUNTED_AT))
    return {n: tally.ratio(f"{EXPERTS_AT}{n}", f"{COUNTED_AT}{n}") for n in sizes}
