"""Replay of paces: played along texts by chance and costs, with the regret in hindsight."""

import pytest

from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.decoding.stopping import Stopping
from specdec.metrics import Tally, block_efficiency, mean_tally, regret
from specdec.proposer.ngram import NGram
from specdec.recording.texts import Text
from specdec.replaying.costs import clock_of
from specdec.replaying.paced import Course, courses_along
from specdec.replaying.redraft import jump
from tests.support.arms import TARGET, V
from tests.support.paces import Scripted, in_turns
from tests.support.toy import table_lm
from tests.support.worlds import MAX_DEPTH, courses, played, seconds, world

COSTS = world(0.1, 0.05)


def held(depth: int) -> Scripted:
    return Scripted(lambda context, accepted: depth)


def texts() -> list[Text]:
    random = RandomStream(3, "texts")
    ids = [tuple(random.integer(V) for _ in range(40)) for _ in range(4)]
    return [Text(str(n), "", 0, (0, 1, 2), each, (), "length", 40) for n, each in enumerate(ids)]


def test_what_a_text_decides_is_played_as_it_is_followed() -> None:
    """N-grams at a fixed depth: every step is the one that decoding on the text would make."""
    verifier = table_lm(TARGET, V)
    some = texts()
    for depth in (1, 3):
        followed = jump(some, NGram(depth), verifier, Sampling(), Stopping(40))
        along = courses_along(some, NGram(MAX_DEPTH), V, Sampling())
        mine = sorted(played(COSTS, along, held(depth)), key=lambda trace: trace.prompt_id)
        theirs = sorted(followed, key=lambda trace: trace.prompt_id)
        for one, other in zip(mine, theirs, strict=True):
            assert one.output_ids == other.output_ids
            pairs = [[(s.drafted, s.accepted) for s in trace.steps] for trace in (one, other)]
            assert pairs[0] == pairs[1]


def test_chance_accepts_as_often_as_the_closed_form_says() -> None:
    """E[A] of a chain of 3 at rate 0.6 is 0.6 + 0.36 + 0.216."""
    traces = played(COSTS, courses(lambda text, place: 0.6), held(3), seed=7)
    found = block_efficiency(Tally.of(traces)).value
    assert found == pytest.approx(1 + 0.6 + 0.36 + 0.216, abs=0.05)


def test_seconds_are_those_of_the_costs() -> None:
    """A step of depth 3 takes 3 levels and 4 tokens; one at rest a plain step."""
    traces = played(COSTS, courses(lambda text, place: 0.0, 1, 30), Scripted(in_turns))
    for step, length in zip(traces[0].steps, traces[0].contexts, strict=True):
        most = min(3, 30 - (length - 1) - 1) if (length + 1) % 3 == 0 else 0
        taken = step.propose_seconds + step.verify_seconds + step.other_seconds
        assert step.drafted == most
        assert taken == pytest.approx(1 + 0.05 * most + (0.3 if most else 0.0)), length


def test_the_depth_of_the_pace_decides_what_drafting_takes() -> None:
    """Near the end of a text fewer can be used, but all were drafted."""
    traces = played(COSTS, courses(lambda text, place: 0.0, 1, 10), held(8))
    assert [step.drafted for step in traces[0].steps] == [8, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert {round(step.propose_seconds, 9) for step in traces[0].steps[:-1]} == {0.8}


def test_regret_is_paired_over_prompts() -> None:
    some = courses(lambda text, place: 0.1 + 0.08 * (text % 10), 20)
    slow, fast = (Tally.of(played(COSTS, some, held(depth))) for depth in (8, 2))
    found = regret(slow, fast)
    times = [seconds(played(COSTS, some, held(depth))) for depth in (8, 2)]
    assert found.value == pytest.approx(times[0] / times[1] - 1)
    assert None not in (found.low, found.high)
    assert (found.low or 0.0) < (found.value or 0.0) < (found.high or 0.0)
    assert regret(fast, fast).value == 0


def test_the_mean_of_plays_is_as_large_as_one() -> None:
    some = courses(lambda text, place: 0.6, 6)
    plays = [
        Tally.of(traces, [clock_of(each, COSTS) for each in traces])
        for traces in (played(COSTS, some, held(3), seed) for seed in range(4))
    ]
    mean = mean_tally(plays)
    assert mean.total("num_emitted") == plays[0].total("num_emitted")
    assert mean.total("num_turns") == 6
    assert mean.total("num_steps") == pytest.approx(
        sum(each.total("num_steps") for each in plays) / 4
    )


def test_a_course_offers_no_more_than_there_is() -> None:
    found: Course = courses(lambda text, place: 0.5, 1, 5)[0]
    assert found.at(0, 3) == [1.0, 0.5, 0.25, 0.125]
    assert found.at(4, 3) == (1.0,)
    assert found.at(0, 0) == (1.0,)
