"""Seconds that cannot be true are found beyond their noise, and honest ones are not."""

import random
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import pytest

from specdec.core.outcome import Outcome
from specdec.core.trace import Step
from specdec.replaying.cost_fitting import Timed, fitted
from specdec.replaying.costs import ProposerKey
from specdec.replaying.doubts import doubts
from specdec.replaying.forwards import Forwards, Shape, TimedForward

CONTEXT = 50
DRAFT, DRAWN = "draft_model mine", "drawn"
KEY, NONE = ProposerKey(DRAFT, "0123"), ProposerKey("none", "4567")
NOISE = 0.1


def steps(
    rng: random.Random, drafted: int, depth: int, verify: float, propose: float = 0.0
) -> list[Step]:
    """Make forty steps, each part of which takes its seconds within some noise."""
    return [
        Step(
            drafted=drafted,
            depth=depth,
            accepted=0,
            emitted=1,
            outcome=Outcome.RECOVERED,
            overlap=(),
            draft_calls=0,
            propose_seconds=propose * rng.lognormvariate(0, NOISE),
            verify_seconds=verify * rng.lognormvariate(0, NOISE),
            other_seconds=0.01,
        )
        for _ in range(40)
    ]


class Measured(NamedTuple):
    samples: dict[Shape, list[float]]
    forwards: Forwards
    timed: list[Timed]


def measured(
    seed: int,
    chain: Sequence[float] = (1.0, 1.0, 1.2),  # of 1, 2 and 5 tokens
    tree: Sequence[float] = (1.3, 1.6),  # of 3 and 5 tokens
    longer: float = 1.2,  # times as much at twice the context
    factor: float = 0.85,
    drafts: Sequence[float] = (0.3, 0.9),  # of one and four levels
) -> Measured:
    """Make what a quiet machine says, but for what is told."""
    rng = random.Random(seed)
    samples: dict[Shape, list[float]] = {}
    for context, times in ((CONTEXT, 1.0), (2 * CONTEXT, longer)):
        for sizes, branches, seconds in (((1, 2, 5), False, chain), ((3, 5), True, tree)):
            for size, each in zip(sizes, seconds, strict=True):
                noisy = [times * each * rng.lognormvariate(0, NOISE) for _ in range(15)]
                samples[Shape(branches, size, context)] = noisy
    points = [TimedForward(shape, median(each), 1) for shape, each in samples.items()]
    timed = [timed_as(NONE, (), "", steps(rng, 0, 0, chain[0]))]
    for depth, propose, verify in zip((1, 4), drafts, chain[1:], strict=True):
        own = steps(rng, depth, depth, max(factor * verify, 0.0), propose)
        timed.append(timed_as(KEY, (1,) * depth, DRAWN, own))
    return Measured(samples, Forwards(1, 1.0, tuple(points)), timed)


def timed_as(
    draft: ProposerKey, parents: tuple[int, ...], choice: str, made: Sequence[Step]
) -> Timed:
    return Timed(draft, parents, choice, made, [CONTEXT] * len(made))


def test_honest_seconds_are_believed() -> None:
    """Equal forwards, warm ones and free starts among them: fixed seeds, 10 % of noise."""
    cases = [
        *({"seed": seed} for seed in range(100)),
        *({"seed": seed, "drafts": (0.25, 1.0)} for seed in range(30)),
        *({"seed": seed, "chain": (1.0, 0.97, 0.95)} for seed in range(30)),
    ]
    assert [found for case in cases if (found := doubts(*measured(**case)))] == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"chain": (2.0, 1.0, 1.2)}, "verifier, chain: 2 tokens behind 50 take less time than 1"),
        ({"tree": (1.6, 0.9)}, "verifier, tree: 5 tokens behind 50 take less time than 3"),
        ({"longer": 0.5}, "verifier, chain: 1 token behind 100 take less time than 1 token"),
        ({"factor": 0.4}, f"{DRAFT}: verifier's factor"),
        ({"drafts": (0.3, 2.4)}, f"{DRAFT}: start takes less than nothing"),
        ({"drafts": (1.0, 0.5)}, f"{DRAFT}: a level, drawn, below 1 nodes takes less than"),
    ],
    ids=["chain", "tree", "context", "factor", "start", "level"],
)
@pytest.mark.parametrize("seed", range(5))
def test_seconds_that_cannot_be_are_named(changed: dict[str, Any], named: str, seed: int) -> None:
    found = doubts(*measured(seed, **changed))
    assert any(each.startswith(named) for each in found), found


def test_what_is_believed_is_fitted() -> None:
    found = measured(0)
    assert doubts(*found) == []
    costs = fitted(found.forwards, found.timed, {}, {})
    assert costs.drafts[KEY.known_by].verify == pytest.approx(0.85, rel=0.1)
    assert costs.drafts[KEY.known_by].start == pytest.approx(0.1, abs=0.06)
