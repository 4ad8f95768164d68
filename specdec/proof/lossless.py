"""Is a rule as lossless as it says? Enumerated on small tables when a run is configured.

One round is played in all its ways: every draft that can be drawn, every decision that the rule
can take. Completed with p, the text must have p's distribution; by induction over rounds all texts
then do. It takes a fraction of a second, and finds what no benchmark shows: wrong samplers look
faster.
"""

from dataclasses import dataclass

from specdec.core.errors import UserError, first_line
from specdec.core.protocols import VerificationRule
from specdec.core.values import Draw
from specdec.proof.cases import Case, cases
from specdec.proof.known import remembering
from specdec.proof.rounds import Enumerated, enumerated, off_by

ROUNDING = 1e-5  # of float32 distributions; the bugs that are known are off by 1e-2 and more
MISCOUNT = 1e-4  # tokens
ADVICE = "decide with stream.accept(probability) and stream.choose(weights) alone"
ASKS_NOBODY = f"does not ask the stream for all that it decides; {ADVICE}"


@dataclass(frozen=True)
class Finding:
    """What is wrong with what a rule says of itself; None: nothing that enumeration shows."""

    lossy: str | None = None  # the text's distribution is not the verifier's, or nobody can tell
    miscounts: str | None = None  # `expected_accepted` is not what is accepted on average


def prove_lossless(rule: VerificationRule, draw: Draw | None = None) -> None:
    """Enumerate a rule on small tables: the text must have exactly the verifier's distribution.

    Args:
        rule: decides by its stream alone, so that each of its decisions can be enumerated.
        draw: how candidates are drawn; None: each way that it says it is lossless for.

    Returns:
        Nothing, if it is proven.

    Raises:
        UserError: the text's distribution is off, on which candidates and by how much; or the rule
            cannot be enumerated; or its `expected_accepted` is not what it accepts on average.
    """
    draws = sorted(rule.lossless_for, key=lambda each: each.value) if draw is None else [draw]
    for each in draws:
        found = finding(rule, each)
        flaw = found.lossy or found.miscounts
        if flaw is not None:
            raise UserError(f"{type(rule).__module__}.{type(rule).__qualname__}: {flaw}")


def _found(rule: VerificationRule, draw: Draw | None) -> Finding:
    lossy: str | None = None
    miscounts: str | None = None
    for case in cases(draw):
        try:
            found = enumerated(rule, case)
            again = enumerated(rule, case) if _off_by(found, case) > ROUNDING else found
        except Exception as error:  # whatever foreign code raises, nobody can tell what it does
            return Finding(
                lossy or f"{case}: {type(error).__name__}: {first_line(error)}; {ADVICE}", miscounts
            )
        if found != again:
            return Finding(f"{case}: {ASKS_NOBODY}", miscounts)
        lossy = lossy or _lossy(found, case)
        miscounts = miscounts or _miscounts(found, case)
    return Finding(lossy, miscounts)


# What enumeration shows of a rule that decides on candidates so drawn; None: on none.
finding = remembering(_found)


def _lossy(found: Enumerated, case: Case) -> str | None:
    off = _off_by(found, case)
    if off <= ROUNDING:
        return None
    if not found.num_decisions:
        return f"{case}: {ASKS_NOBODY}"
    return f"{case}: the text's distribution is off by {off:.3g} (total variation)"


def _miscounts(found: Enumerated, case: Case) -> str | None:
    said = found.expected_accepted
    if said is None or abs(said - found.accepted) <= MISCOUNT:
        return None
    return (
        f"{case}: says expected_accepted {said:.3f} and accepts {found.accepted:.3f} on average;"
        " expected E[A] given the candidates, or None where it is not known"
    )


def _off_by(found: Enumerated, case: Case) -> float:
    return off_by(found.blocks, case.table.p, case.length)
