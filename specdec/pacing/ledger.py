"""What was lost against plain decoding: the floor below which an arm never falls for long."""

SLACK = 4  # plain steps that may be lost at once, when nothing is known yet


class Ledger:
    """Compares the seconds of all steps with those that plain steps for the same tokens take.

    Steps that may lose are allowed only while

        lost <= share * elapsed + SLACK plain steps,

    so that the whole is never slower than plain decoding by more than `share` of the time, but for
    these few steps and the last loss.
    """

    def __init__(self, share: float):
        self._share = share
        self._elapsed = 0.0
        self._lost = 0.0

    def note(self, seconds: float, plain: float) -> None:
        """Book a step, and what its tokens take without candidates."""
        self._elapsed += seconds
        self._lost += seconds - plain

    def allows(self, risk: float, plain: float) -> bool:
        """Whether so many more seconds may be lost; `plain` are those of a plain step."""
        return self._lost + risk <= self._share * self._elapsed + SLACK * plain
