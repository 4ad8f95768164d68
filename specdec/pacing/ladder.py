"""The depths that are chosen from, and which of them brings the most tokens per second."""

from collections.abc import Sequence
from typing import NamedTuple

# Few, so that few programs are made and each is used often; near the best one all are as good.
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
HIGHEST_PRICE = 0.95  # of a token, in tokens: a draft that is surer than that is always used


class DepthChoice(NamedTuple):
    """What a step of all requests in flight is expected to bring and to take."""

    depth: int
    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def rungs(max_depth: int) -> list[int]:
    """Return the depths above 0 that are chosen from; the deepest is always among them."""
    return [*(depth for depth in LADDER if depth < max_depth), max_depth]


def best(choices: Sequence[DepthChoice]) -> DepthChoice:
    """Return the fastest; of equal ones the one that drafts least."""
    return max(choices, key=lambda choice: (choice.rate, -choice.depth))


def price(choices: Sequence[DepthChoice], chosen: DepthChoice, num_rows: int) -> float:
    """Return what one more draft token of a request costs, in tokens, at the speed of `chosen`.

    Its seconds are those of the last rung, by which it is no longer worth it to go on where the
    draft's likeliest token is less likely to be accepted (Li et al. 2024, EAGLE-2, section 4.1:
    the draft's confidence is about the rate of acceptance).
    """
    place = choices.index(chosen)
    below = choices[place - 1]
    seconds = (chosen.seconds - below.seconds) / (chosen.depth - below.depth)
    return min(HIGHEST_PRICE, max(0.0, seconds * chosen.rate / num_rows))
