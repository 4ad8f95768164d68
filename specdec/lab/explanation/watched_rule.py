"""A verification rule that remembers what it was shown, and what it decided by which numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from specdec.core.protocols import VerificationRule
from specdec.core.randomness import RandomStream, Stream
from specdec.core.sampling import draw
from specdec.core.values import Proposal, Verdict


@dataclass(frozen=True)
class Heard:
    """A random decision: a question with the chance of a yes, or a token that is drawn."""

    number: float  # in [0, 1)
    chance: float | None
    token_id: int | None = None


@dataclass(frozen=True)
class Judged:
    """What a rule was shown of one request, and its verdict."""

    proposal: Proposal
    verifier_probs: Tensor  # [N+1, V]
    verdict: Verdict
    heard: tuple[Heard, ...]


class HeardStream(RandomStream):
    """Draws the numbers of another stream, and remembers what was decided by them."""

    def __init__(self, stream: RandomStream):
        self._stream = stream
        self.heard: list[Heard] = []

    def uniform(self) -> float:
        """Return the next number."""
        return self._stream.uniform()

    def integer(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        return self._stream.integer(bound)

    def accept(self, probability: float) -> bool:
        """Decide yes with this probability."""
        self.heard.append(Heard(self.uniform(), float(probability)))
        return self.heard[-1].number < probability

    def choose(self, weights: Tensor) -> int:  # [V]
        """Draw a token in proportion to its weight."""
        return self._chosen(weights, self.uniform())

    def choose_each(self, weights: Tensor) -> Callable[[int], int]:  # [n, V]
        """Draw a token for each row; those that are asked for are remembered."""
        numbers = [self.uniform() for _ in range(len(weights))]
        return lambda row: self._chosen(weights[row], numbers[row])

    def _chosen(self, weights: Tensor, number: float) -> int:
        token_id = int(draw(weights, number))
        self.heard.append(Heard(number, None, token_id))
        return token_id


class WatchedRule:
    """Decides as another rule does; `judged` is all that it was shown."""

    def __init__(self, rule: VerificationRule, see: Callable[[Judged], None]):
        self.rule = rule
        self.lossless_for = rule.lossless_for
        self.defined_for = rule.defined_for
        self.needs_q = rule.needs_q
        self._see = see

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree, as the rule does."""
        assert isinstance(stream, RandomStream)
        listening = HeardStream(stream)
        verdict = self.rule.verify(proposal, verifier_probs, listening)
        self._see(Judged(proposal, verifier_probs, verdict, tuple(listening.heard)))
        return verdict
