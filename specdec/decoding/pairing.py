"""Which rule may decide on which candidates; known before any model is loaded."""

from specdec.core.errors import UserError
from specdec.core.protocols import VerificationRule
from specdec.core.values import Draw


def is_lossless(rule: VerificationRule, draw: Draw, allow_lossy: bool) -> bool:
    """Return whether the text will have exactly the verifier's distribution.

    Raises:
        UserError: the rule cannot decide on such candidates, or it is not lossless for them and
            `allow_lossy` is off.
    """
    name = type(rule).__module__.rsplit(".", 1)[-1]  # what the command line calls it
    if draw not in rule.defined_for:
        known = ", ".join(sorted(each.value for each in rule.defined_for))
        raise UserError(
            f"verification={name}: cannot decide on {draw.value} candidates, only on {known};"
            " another tree or another rule would do"
        )
    if draw not in rule.lossless_for and not allow_lossy:
        raise UserError(
            f"verification={name}: not lossless for {draw.value} candidates; set"
            " verification.allow_lossy=true to run it all the same"
        )
    return draw in rule.lossless_for
