"""What was lost against plain decoding: the floor below which an arm never falls for long."""

SLACK = 24.0  # plain steps that bad luck may cost: even a good draft has a run of refusals
TRIALS = 2.0  # plain steps that trials may cost when hardly any time has passed


class Ledger:
    """Compares the seconds of all steps with those that plain steps for the same tokens take.

    Drafting is allowed only while what was lost by all steps together, luck included, obeys

        lost <= share * elapsed + SLACK plain steps,

    so that the whole is never slower than plain decoding by more than `share` of the time, but for
    these few steps and the last loss. Trials of what is not believed to be the best have an account
    of their own: what they are expected to lose is at most `share` of the time and TRIALS steps.
    """

    def __init__(self, share: float):
        self._share = share
        self._elapsed = 0.0
        self._lost = 0.0
        self._tried = 0.0

    @property
    def lost(self) -> float:
        """The seconds lost so far; below 0 where drafting has paid."""
        return self._lost

    @property
    def elapsed(self) -> float:
        """The seconds of all steps so far."""
        return self._elapsed

    def note(self, seconds: float, plain: float) -> None:
        """Book a step, and what its tokens take without candidates."""
        self._elapsed += seconds
        self._lost += seconds - plain

    def allows(self, plain: float) -> bool:
        """Whether a step may draft; `plain` are the seconds of a plain step."""
        return self._lost <= self._share * self._elapsed + SLACK * plain

    def allows_trial(self, risk: float, plain: float) -> bool:
        """Whether a trial that is expected to lose so many seconds may be made; books it if so."""
        if self._tried + risk > self._share * self._elapsed + TRIALS * plain:
            return False
        self._tried += risk
        return True
