"""Which rule may decide on which candidates; known before any model is loaded."""

from collections.abc import Mapping
from itertools import product

from specdec.core.errors import Unfit, UserError
from specdec.core.protocols import Proposer, TreeFinisher, VerificationRule
from specdec.core.values import Draw, Draws, each_draw
from specdec.proof.lossless import finding


def is_lossless(rule: VerificationRule, draws: Draws, allow_lossy: bool) -> bool:
    """Return whether the text will have exactly the verifier's distribution.

    Of candidates that are drawn now in this way and now in that, the rule must be right for each:
    which it is was settled before anything was drawn, so every step is one that was proven.

    What a rule says of itself is not believed but enumerated, the package's own rules too.

    Raises:
        UserError: the rule cannot decide on such candidates (Unfit), or it is not lossless for them
            and `allow_lossy` is off, or it says so and is not, or it miscounts.
    """
    found = [_is_lossless_for(rule, draw, allow_lossy) for draw in each_draw(draws)]
    return all(found)


def _is_lossless_for(rule: VerificationRule, draw: Draw | None, allow_lossy: bool) -> bool:
    field = called(rule)
    require_defined(rule, draw, field)
    claims = draw is None or draw in rule.lossless_for
    found = finding(rule, draw)
    lossless = claims and found.lossy is None
    if not lossless and not allow_lossy:
        if claims:
            raise UserError(f"{field}: not lossless, though it says so: {found.lossy}")
        assert draw is not None
        kind = Unfit if rule.lossless_for else UserError  # for others it is; or it never is
        raise kind(
            f"{field}: not lossless for {draw.value} candidates; set"
            " verification.allow_lossy=true to run it all the same"
        )
    _require_honest(found.miscounts, field)
    return lossless


def finisher_of(proposer: Proposer, verifier: object, experts: bool) -> TreeFinisher | None:
    """Return a proposer that reads trees to the end with the verifier's layers; None: it does not.

    Raises:
        UserError: it has another verifier's layers and cells, or experts are to be counted, of
            which it reads some beforehand.
    """
    if not isinstance(proposer, TreeFinisher):
        return None
    name = type(proposer).__qualname__
    if getattr(proposer, "verifier", verifier) is not verifier:
        raise UserError(f"{name}: drafts with layers of another verifier; expected the very one")
    if experts:
        raise UserError(
            f"experts=true: {name} reads candidates by parts of the verifier;"
            " experts are counted in whole forwards, with another proposer"
        )
    return proposer


def require_judges(judges: Mapping[str, VerificationRule], draws: Draws) -> None:
    """Refuse judges that cannot decide on such candidates; they need not be lossless.

    What they say is what they accept on average, and that is enumerated.
    """
    for (name, judge), draw in product(judges.items(), each_draw(draws)):
        require_defined(judge, draw, f"judges={name}")
        _require_honest(finding(judge, draw).miscounts, f"judges={name}")


def require_defined(rule: VerificationRule, draw: Draw | None, field: str) -> None:
    """Refuse a rule that cannot decide on such candidates; `field` begins the message."""
    if draw is not None and draw not in rule.defined_for:
        known = ", ".join(sorted(each.value for each in rule.defined_for))
        raise Unfit(
            f"{field}: cannot decide on {draw.value} candidates, only on {known}; another rule,"
            " tree or proposer would do"
        )


def called(rule: VerificationRule) -> str:
    """Name a rule as the command line does, and one from elsewhere by its class."""
    module, name = type(rule).__module__, type(rule).__qualname__
    if module.startswith("specdec.verification."):
        return f"verification={module.rsplit('.', 1)[-1]}"
    return f"verification.rule={module}.{name}"


def _require_honest(miscounts: str | None, field: str) -> None:
    if miscounts is not None:
        raise UserError(f"{field}: {miscounts}")
