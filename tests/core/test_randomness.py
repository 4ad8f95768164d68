"""Streams keyed by (seed, request, step, purpose): same key, same numbers, and nobody else's."""

import pickle
import random
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from specdec.core.randomness import RandomStream
from specdec.core.sampling import draw

FALSE_ALARM = 1e-6  # of each statistical test here; the keys are fixed, so none is flaky
KEY = (3, "prompt#1", 7, "verify")
PINNED = [0.017452594173885894, 0.8630812161901913, 0.04735242791993388]


def numbers(*key: object, num: int = 8) -> list[float]:
    stream = RandomStream(*key)
    return [stream.uniform() for _ in range(num)]


def test_the_same_key_gives_the_same_numbers() -> None:
    assert numbers(*KEY) == numbers(*KEY)


def test_the_global_generators_have_no_say() -> None:
    random.seed(0)
    torch.manual_seed(0)
    first, state = numbers(*KEY), torch.get_rng_state()
    random.seed(1)
    torch.manual_seed(1)
    assert numbers(*KEY) == first, "a stream reads a global generator"
    torch.manual_seed(0)
    RandomStream(*KEY).choose(torch.ones(5))
    assert torch.equal(torch.get_rng_state(), state), "a stream moves torch's global generator"


def test_a_key_means_the_same_numbers_in_every_process() -> None:
    """Pinned: `hash()` of a string, say, differs from process to process; results must not."""
    assert numbers(*KEY, num=3) == PINNED


@pytest.mark.parametrize(
    "other",
    [
        (4, "prompt#1", 7, "verify"),
        (3, "prompt#2", 7, "verify"),
        (3, "prompt", 7, "verify"),
        (3, "prompt#1", 8, "verify"),
        (3, "prompt#1", 7, "draft"),
        (3, "prompt#1", 7),
        (3, "prompt#17", "", "verify"),
        (37, "prompt#1", 7, "verify"),
        ("3", "prompt#1", 7, "verify"),
        (3, "prompt#1", "7", "verify"),
    ],
    ids=str,
)
def test_another_key_gives_other_numbers(other: tuple[object, ...]) -> None:
    ours, theirs = numbers(*KEY, num=4), numbers(*other, num=4)
    assert not set(ours) & set(theirs), f"{other} shares numbers with {KEY}"


def test_parts_of_a_key_cannot_run_into_each_other() -> None:
    assert numbers("a", "b") != numbers("ab")
    assert numbers("a, b") != numbers("a", "b")
    assert numbers("a', 'b") != numbers("a", "b")
    assert numbers(1, 12) != numbers(11, 2)


def test_no_two_streams_of_a_run_begin_alike() -> None:
    keys = list(product(range(3), ("p1", "p2", "p1#1"), range(200), ("draft", "verify")))
    starts = {RandomStream(*key).uniform() for key in keys}
    assert len(starts) == len(keys), f"{len(keys) - len(starts)} of {len(keys)} streams collide"


def test_the_first_numbers_of_neighbouring_streams_are_uniform() -> None:
    """Chi-square in 25 bins over 5000 steps; a stream is new at each step, so these matter most."""
    counts = torch.zeros(25)
    for step in range(5000):
        counts[int(25 * RandomStream(0, "p", step, "draft").uniform())] += 1
    p_value = chisquare(counts.numpy()).pvalue
    assert p_value > FALSE_ALARM, f"p={p_value:.1e}: first numbers are not uniform"


@pytest.mark.parametrize("pair", ["draft-verify", "neighbouring-steps", "neighbouring-seeds"])
def test_streams_look_independent(pair: str) -> None:
    """Contingency tables (8 x 8) over 6000 pairs of first numbers."""
    starts = {
        "draft-verify": [
            (numbers(0, "p", n, "draft", num=1), numbers(0, "p", n, "verify", num=1))
            for n in range(6000)
        ],
        "neighbouring-steps": list(pairwise(numbers(0, "p", n, "x", num=1) for n in range(6001))),
        "neighbouring-seeds": list(pairwise(numbers(n, "p", 0, "x", num=1) for n in range(6001))),
    }[pair]
    table = torch.zeros(8, 8)
    for (first,), (second,) in starts:
        table[int(8 * first), int(8 * second)] += 1
    found: Any = chi2_contingency(table.numpy())
    p_value = found.pvalue
    assert p_value > FALSE_ALARM, f"p={p_value:.1e}: {pair} streams depend on each other"


def test_decisions_use_one_number_each_in_their_order() -> None:
    """So that what a rule draws depends on its earlier decisions' number alone, not their kind."""
    uniforms = numbers(*KEY, num=4)
    weights = torch.tensor([0.1, 0.0, 0.5, 0.4])
    stream = RandomStream(*KEY)
    assert stream.accept(0.5) is (uniforms[0] < 0.5)
    expected = draw(weights, uniforms[1])
    assert stream.choose(weights) == int(expected)
    assert stream.uniform() == uniforms[2]
    assert stream.accept(uniforms[3]) is False, "accept must be strict: u < probability"


def test_accept_at_its_ends() -> None:
    stream = RandomStream("ends")
    decisions = [(stream.accept(0.0), stream.accept(1.0), stream.accept(7.5)) for _ in range(2000)]
    assert set(decisions) == {(False, True, True)}
    assert not any(stream.accept(-0.5) for _ in range(100))


def test_accept_has_its_probability() -> None:
    stream = RandomStream("accept")
    num = 40_000
    for probability in (0.03, 0.5, 0.97):
        count = sum(stream.accept(probability) for _ in range(num))
        deviation = (count - num * probability) / (num * probability * (1 - probability)) ** 0.5
        # 4.9 sigma: false alarm 1e-6
        assert abs(deviation) < 4.9, f"{count} of {num} accepted at {probability}"


def test_integers_are_uniform_below_their_bound() -> None:
    stream = RandomStream("integers")
    drawn = torch.tensor([stream.integer(7) for _ in range(14_000)])
    p_value = chisquare(drawn.bincount(minlength=7).numpy()).pvalue
    assert int(drawn.max()) == 6
    assert p_value > FALSE_ALARM, f"p={p_value:.1e}"
    assert {stream.integer(1) for _ in range(10)} == {0}


def test_choose_draws_tokens_in_proportion_to_their_weights() -> None:
    stream = RandomStream("choose")
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0])
    counts = torch.zeros(5)
    for _ in range(8000):
        counts[stream.choose(weights)] += 1
    assert counts[[0, 3]].tolist() == [0, 0]
    p_value = chisquare(counts[[1, 2, 4]].numpy(), [1000, 2000, 5000]).pvalue
    assert p_value > FALSE_ALARM, f"p={p_value:.1e}"


def test_a_stream_that_nobody_asks_is_never_seeded() -> None:
    """Most steps of most proposers draw nothing; seeding 2.5 kB of state each time would show."""
    unused, used = RandomStream(*KEY), RandomStream(*KEY)
    used.uniform()
    assert len(pickle.dumps(unused)) < 500 < len(pickle.dumps(used))
