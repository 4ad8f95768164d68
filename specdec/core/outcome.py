"""How a step ends; apart from the other values, since who reads traces needs no torch."""

from enum import Enum


class Outcome(Enum):
    """Where the last token of a step came from."""

    BONUS = "bonus"  # all candidates on the path accepted; the next token is drawn from p
    RECOVERED = "recovered"  # a candidate was rejected; the next token is drawn from the residual
    ENDED = "ended"  # the text ended within the accepted draft tokens; no further token is drawn
