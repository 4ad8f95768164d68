"""What is compared or replayed: a proposer, alone or with a rule of its own."""

from collections.abc import Mapping

from specdec.core.errors import UserError, require, require_kind
from specdec.core.protocols import Learner, Proposer, VerificationRule
from specdec.lm.hf import HFCausalLM
from specdec.notebook.given import require_pair
from specdec.verification.rejection import Rejection

Entrant = Proposer | tuple[Proposer, VerificationRule]
Pair = tuple[Proposer, VerificationRule]


def pairs_of(
    verifier: HFCausalLM,
    entrants: Mapping[str, Entrant],
    rule: VerificationRule | None,
    reference: str | None,
) -> dict[str, Pair]:
    """Give each proposer its rule: its own, or else `rule`, or else rejection sampling.

    Raises:
        UserError: there is none, none is called `reference`, or one is none for this verifier.
    """
    expected = "a dict of at least one, {'none': sd.NoProposer()}"
    require_kind("proposers", entrants, Mapping, expected)
    require(bool(entrants), "proposers", entrants, expected)
    if reference is not None and reference not in list(entrants):
        raise UserError(f"reference={reference!r}: expected one of {', '.join(entrants)}")
    shared = Rejection() if rule is None else rule
    pairs: dict[str, Pair] = {}
    for name, each in entrants.items():
        pair = each if isinstance(each, tuple) else (each, shared)
        require(len(pair) == 2, f"proposers[{name!r}]", each, "a proposer, or (proposer, rule)")
        require_pair(verifier, *pair)
        pairs[name] = pair
    return pairs


def learners_of(
    pairs: Mapping[str, Pair], learners: Mapping[str, Learner] | None
) -> Mapping[str, Learner]:
    """Return who learns, by name.

    Raises:
        UserError: a learner is nobody's, or its proposer drafts for another name, too.
    """
    found = learners or {}
    for name in found:
        if name not in pairs:
            raise UserError(f"learners={name!r}: expected one of {', '.join(pairs)}")
        own = pairs[name][0]
        others = [other for other, (each, _) in pairs.items() if each is own and other != name]
        if others:
            raise UserError(
                f"learners={name!r}: its proposer is that of {others[0]!r}, too, which would change"
                " with it; expected an object of its own"
            )
    return found
