"""What is compared or replayed: a proposer, alone or with a rule of its own."""

from collections.abc import Mapping

from specdec.core.errors import UserError, require
from specdec.core.protocols import Proposer, VerificationRule
from specdec.verification.rejection import Rejection

Entrant = Proposer | tuple[Proposer, VerificationRule]
Pair = tuple[Proposer, VerificationRule]


def pairs_of(
    entrants: Mapping[str, Entrant], rule: VerificationRule | None, reference: str | None
) -> dict[str, Pair]:
    """Give each proposer its rule: its own, or else `rule`, or else rejection sampling.

    Raises:
        UserError: there is none, or none is called `reference`.
    """
    require(bool(entrants), "proposers", entrants, "at least one, {'none': sd.NoProposer()}")
    if reference is not None and reference not in entrants:
        expected = f"one of {', '.join(entrants)}"
        raise UserError(f"reference={reference!r}: expected {expected}")
    shared = rule or Rejection()
    return {
        name: each if isinstance(each, tuple) else (each, shared) for name, each in entrants.items()
    }
