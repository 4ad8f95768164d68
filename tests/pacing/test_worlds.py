"""In worlds of known rates and costs: near the best fixed depth, and never below plain decoding.

Costs are exact here and chance is the only noise, so that what is held against the best fixed depth
is what the controller itself loses.
"""

import pytest

from specdec.pacing.adaptive import Adaptive
from tests.support.worlds import DEPTHS, Noisy, Rate, courses, fixed, played, seconds, world

CHEAP, DEAR = (0.05, 0.02), (0.4, 0.15)
FLOOR, REGRET = 0.98, 0.03
WORLDS: dict[str, tuple[Rate, tuple[float, float]]] = {
    "bad": (lambda text, place: 0.05, CHEAP),
    "bad_and_dear": (lambda text, place: 0.3, DEAR),
    "middling": (lambda text, place: 0.5, CHEAP),
    "good": (lambda text, place: 0.85, CHEAP),
    "good_and_dear": (lambda text, place: 0.9, DEAR),
    "some_good_some_bad": (lambda text, place: 0.9 if text % 2 else 0.2, CHEAP),
    "turning_bad": (lambda text, place: 0.85 if text < 12 else 0.1, CHEAP),
}


@pytest.mark.thorough
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", WORLDS)
def test_depths_are_near_the_best_in_hindsight(name: str, batch: int) -> None:
    rate, costs = WORLDS[name]
    known, some = world(*costs, batch), courses(rate)
    times = fixed(known, some)
    mine = seconds(played(known, some, Adaptive(), seed=1))
    assert mine <= times[0] / FLOOR, "slower than plain decoding"
    assert mine <= (1 + REGRET) * min(times.values())


# Costs as on a processor: of eight requests in flight each further token takes long to read.
SHORT: dict[str, tuple[float, dict[int, tuple[float, float]]]] = {
    "random": (0.02, {1: (0.3, 0.04), 8: (0.25, 0.15)}),
    "no_repeats": (0.02, {1: (0.001, 0.05), 8: (0.001, 0.15)}),
    "middling": (0.5, {1: (0.3, 0.04), 8: (0.25, 0.15)}),
}


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", SHORT)
def test_short_runs_keep_the_floor_by_a_noisy_clock(name: str, batch: int) -> None:
    """8 texts of 96 tokens: where all are in flight at once two plain steps may be lost."""
    rate, costs = SHORT[name]
    known, some = world(*costs[batch], batch), courses(lambda text, place: rate, 8, 96)
    times = fixed(known, some)
    runs = [seconds(played(known, some, Noisy(Adaptive(), seed), seed)) for seed in range(5)]
    assert sum(runs) / len(runs) <= times[0] / FLOOR
    assert max(runs) <= times[0] / 0.96, "nor is any of them far below it"


def test_each_world_is_another() -> None:
    """Else being near the best would be no feat: somewhere nothing pays, elsewhere the deepest."""
    found = {
        min(times := fixed(world(*costs), courses(rate, 6)), key=lambda depth: times[depth])
        for rate, costs in (WORLDS["bad_and_dear"], WORLDS["middling"], WORLDS["good"])
    }
    assert len(found) == 3
    assert min(found) == 0
    assert found <= {*DEPTHS}


def test_lengths_follow_a_shift_both_ways() -> None:
    """What pays at first does not later, and then does again."""
    some = courses(lambda text, place: 0.1 if 6 <= text < 12 else 0.9, 18)
    traces = played(world(*CHEAP), some, Adaptive())
    mean = [sum(step.drafted for step in each.steps) / len(each.steps) for each in traces]
    assert min(mean[2:6]) > 3
    assert max(mean[9:12]) < 2, "at depth 1 even one in ten pays for so cheap a draft"
    assert min(mean[15:18]) > 3


def test_equal_plays_are_equal() -> None:
    """Seconds of a file leave nothing to the clock."""
    some = courses(lambda text, place: 0.6, 3)
    known = world(*CHEAP)
    first, second = (played(known, some, Adaptive(), seed=4) for _ in range(2))
    assert first == second
    assert first != played(known, some, Adaptive(), seed=5)


def test_a_chain_of_the_best_depth_is_what_a_constant_world_ends_in() -> None:
    known, some = world(*CHEAP), courses(lambda text, place: 0.85, 12)
    times = fixed(known, some)
    best = min(times, key=lambda depth: times[depth])
    last = played(known, some, Adaptive())[-1]
    drafted = [step.drafted for step in last.steps[:-best]]
    near = [depth for depth in DEPTHS if times[depth] < 1.03 * times[best]]
    assert sum(depth in near for depth in drafted) > 0.7 * len(drafted)
