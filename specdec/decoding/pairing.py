"""Which rule may decide on which candidates; known before any model is loaded."""

from collections.abc import Mapping

from specdec.core.errors import Unfit, UserError
from specdec.core.protocols import VerificationRule
from specdec.core.values import Draw


def is_lossless(rule: VerificationRule, draw: Draw | None, allow_lossy: bool) -> bool:
    """Return whether the text will have exactly the verifier's distribution.

    Without candidates (`draw` is None) it always has.

    Raises:
        UserError: the rule cannot decide on such candidates (Unfit), or it is not lossless for them
            and `allow_lossy` is off.
    """
    field = f"verification={type(rule).__module__.rsplit('.', 1)[-1]}"  # as on the command line
    require_defined(rule, draw, field)
    lossless = draw is None or draw in rule.lossless_for
    if draw is not None and not lossless and not allow_lossy:
        kind = Unfit if rule.lossless_for else UserError  # for others it is; or it never is
        raise kind(
            f"{field}: not lossless for {draw.value} candidates; set"
            " verification.allow_lossy=true to run it all the same"
        )
    return lossless


def require_judges(judges: Mapping[str, VerificationRule], draw: Draw | None) -> None:
    """Refuse judges that cannot decide on such candidates; they need not be lossless."""
    for name, judge in judges.items():
        require_defined(judge, draw, f"judges={name}")


def require_defined(rule: VerificationRule, draw: Draw | None, field: str) -> None:
    """Refuse a rule that cannot decide on such candidates; `field` begins the message."""
    if draw is not None and draw not in rule.defined_for:
        known = ", ".join(sorted(each.value for each in rule.defined_for))
        raise Unfit(
            f"{field}: cannot decide on {draw.value} candidates, only on {known}; another rule,"
            " tree or proposer would do"
        )
