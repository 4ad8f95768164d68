"""What was lost against plain decoding: the floor below which an arm never falls for long."""

SLACK = 8.0  # plain tokens that bad luck may cost: even a good draft has a run of refusals
TRIALS = 1.0  # plain tokens that trials may cost when hardly any time has passed


class Ledger:
    """Compares the seconds of all steps with those that plain steps for the same tokens take.

    Drafting is allowed only while what was lost by all steps together, luck included, obeys

        lost <= share * elapsed + SLACK plain tokens,

    so that the whole is never slower than plain decoding by more than `share` of the time, but for
    these few tokens and the last loss. Tokens count, and not steps: a step of B requests in flight
    makes B of them, and is as good as B looks at a draft. Trials of what is not believed to be the
    best have an account of their own: what they are expected to lose is at most `share` of the time
    and TRIALS tokens.
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
        """Whether a step may draft; `plain` are the seconds per token of plain decoding."""
        return self._lost <= self._share * self._elapsed + SLACK * plain

    def allows_trial(self, risk: float, plain: float) -> bool:
        """Whether a trial that is expected to lose so many seconds may be made; books it if so."""
        if self._tried + risk > self._share * self._elapsed + TRIALS * plain:
            return False
        self._tried += risk
        return True
