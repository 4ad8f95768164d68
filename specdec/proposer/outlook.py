"""How many candidates of a proposer a request is likely to accept, learnt from its own past."""

from collections import defaultdict

# Counts fade by this for each proposal that was decided on: texts change their kind.
MEMORY = 0.95
# What is believed beforehand weighs as much as so many expected tokens that were decided on.
BELIEF, OWN_BELIEF = 4.0, 4.0  # of all matches together, and of those of one length
USUAL = 0.6  # P(a token is accepted) of candidates that are not looked up, at first


class Outlook:
    """Predicts accepted tokens from the length of a match and the depth of the candidates.

    Beforehand a match of m tokens is trusted like a rule that has held m times: the next token
    follows it with probability (m + 1) / (m + 2) (Laplace's rule of succession), so that d tokens
    do with (m + 1) / (m + d + 1). What came of earlier proposals of the request, all of them and
    those of like matches, scales that up or down.

    Args:
        trust: what it is scaled by at first.
    """

    def __init__(self, trust: float = 1.0) -> None:
        self._trust = trust
        self._all = _Ratio()
        self._alike: dict[int, _Ratio] = defaultdict(_Ratio)

    def expected(self, matched: int | None, depth: int) -> float:
        """Predict how many tokens of a path of this depth are accepted."""
        overall = self._all.shrunk(self._trust, BELIEF)
        return believed(matched, depth) * self._alike[kind_of(matched)].shrunk(overall, OWN_BELIEF)

    def learn(self, matched: int | None, depth: int, accepted: int) -> None:
        """Note what came of such candidates."""
        for ratio in (self._all, self._alike[kind_of(matched)]):
            ratio.add(accepted, believed(matched, depth))


def believed(matched: int | None, depth: int) -> float:
    """Return how many tokens are accepted before anything is known of the request."""
    if matched is None:
        return sum(USUAL**d for d in range(1, depth + 1))
    return sum((matched + 1) / (matched + d + 1) for d in range(1, depth + 1))


def kind_of(matched: int | None) -> int:
    """Group matches by the powers of two between which they lie; 0: not looked up."""
    return 0 if matched is None else matched.bit_length()


def trust_in_copies(temperature: float) -> float:
    """Return how far copies are trusted at first: less, the less certain the next token is.

    Too little trust costs next to nothing: whether the text would have followed a copy is seen
    without showing it.
    """
    return 1 / (1 + 2 * temperature)


class _Ratio:
    def __init__(self) -> None:
        self._accepted = self._expected = 0.0

    def add(self, accepted: float, expected: float) -> None:
        self._accepted = MEMORY * self._accepted + accepted
        self._expected = MEMORY * self._expected + expected

    def shrunk(self, towards: float, weight: float) -> float:
        """Return accepted over expected, as if `weight` more had been expected and come so."""
        return (weight * towards + self._accepted) / (weight + self._expected)
