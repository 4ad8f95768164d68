"""When something else than the best is tried, so that a wrong belief is found out."""

from collections.abc import Sequence

from specdec.pacing.ladder import DepthChoice, best

BURST = 3  # looks of a probe, of a request each; but two steps, since one may have stalled
FIRST_REST, LONGEST_REST = 16, 256  # plain steps between probes; each rest is twice the last
FIRST_TRIAL, LAST_TRIAL = 16, 256  # drafting steps between looks at a neighbouring depth
# Drafting steps between plain ones, where their seconds are measured; each pause is twice the last.
FIRST_REFRESH, LAST_REFRESH = 8, 128
ENOUGH = 3  # plain steps that were timed before they are timed less often
BY_FAR = 1.5  # times as fast as plain decoding


class Probing:
    """Tries a neighbouring depth now and then, and drafting now and then where none pays.

    Pauses double as long as nothing changes, so that the tries of n steps are of the order of
    log n before the longest pause, and about one in a hundred after that.
    """

    def __init__(self, is_measured: bool):
        self._is_measured = is_measured
        self._resting, self._rest = 0, FIRST_REST
        self._burst = float(BURST)
        self._drafting = 0  # steps since the last plain one
        self._refresh = FIRST_REFRESH
        self._until_trial, self._trial = FIRST_TRIAL, FIRST_TRIAL
        self._upwards = True

    def rests(self, is_new: bool) -> bool:
        """Whether this step is plain without a look, since nothing pays; counts it.

        A new request is looked at: what did not pay for the last ones may pay for it.
        """
        if self._resting == 0 or is_new:
            return False
        self._resting -= 1
        return True

    def wants_plain(self, choices: Sequence[DepthChoice], num_timed: int) -> bool:
        """Whether this step is plain to be timed: every other one at first, fewer and fewer later.

        Where drafting wins by far, the seconds of one plain step say enough for long.
        """
        if not self._is_measured:
            return False
        self._drafting += 1
        if self._drafting < self._refresh_in(choices, num_timed):
            return False
        if num_timed >= ENOUGH:
            self._refresh = min(2 * self._refresh, LAST_REFRESH)
        self._drafting = 0
        return True

    def _refresh_in(self, choices: Sequence[DepthChoice], num_timed: int) -> int:
        """Return how many steps after a plain one the next one is due."""
        if num_timed == 0:
            return 1
        if best(choices).rate >= BY_FAR * choices[0].rate:
            return LAST_REFRESH
        return 2 if num_timed < ENOUGH else self._refresh

    def put_off(self) -> None:
        """Rest, since too much was lost already."""
        self._resting = FIRST_REST

    def choice(self, choices: Sequence[DepthChoice], found: DepthChoice) -> DepthChoice:
        """Return what to do in this step, where `found` is believed to be the best."""
        if found.depth == 0:
            return self._probe(choices)
        self._resting, self._rest, self._burst = 0, FIRST_REST, BURST
        return self._explore(choices, found)

    def _probe(self, choices: Sequence[DepthChoice]) -> DepthChoice:
        if self._resting > 0:  # and a new request pays no more than the others
            self._resting -= 1
            return choices[0]
        if self._burst > 0:
            self._burst -= min(choices[0].tokens, BURST - 1)
            return best(choices[1:])
        self._burst = BURST
        self._resting = self._rest - 1  # this step is the first of the rest
        self._rest = min(2 * self._rest, LONGEST_REST)
        return choices[0]

    def _explore(self, choices: Sequence[DepthChoice], found: DepthChoice) -> DepthChoice:
        self._until_trial -= 1
        if self._until_trial > 0:
            return found
        self._trial = min(2 * self._trial, LAST_TRIAL)
        self._until_trial = self._trial
        self._upwards = not self._upwards
        place = choices.index(found) + (1 if self._upwards else -1)
        return choices[place] if 0 < place < len(choices) else found
