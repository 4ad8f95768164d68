"""Sums by prompt: the same from any order, from rows that were kept, and from several runs."""

import json
import random

import numpy as np
import pytest

from specdec.metrics import Tally, pooled, summarize
from specdec.metrics.columns import AT_RISK, REACHED
from tests.support.metric_traces import example, make_step, make_trace, random_traces

JUDGED = [make_step(1, 2, judged={"block": 1.5}), make_step(2, 2, judged={"block": 0.25})]


def test_sums_by_hand():
    tally = Tally.of(example())
    assert tally.prompt_ids == ("a", "b")
    assert tally.column("num_steps").tolist() == [3, 2]
    assert tally.column("num_emitted").tolist() == [7, 4]
    assert tally.by_depth(REACHED).tolist() == [[2, 1, 1], [2, 1, 0]]
    assert tally.by_depth(AT_RISK).tolist() == [[3, 2, 1], [2, 1, 1]]
    assert tally.column("finished.eos").tolist() == [0, 1]
    assert tally.column("finished.never").tolist() == [0, 0], "of a family of names: it never came"
    assert np.isnan(tally.column("no such thing")).all(), "nobody noted it"


def test_judges_are_counted_by_name():
    tally = Tally.of([make_trace("a", *JUDGED)])
    assert tally.named("judged.") == ["judged.block"]
    assert tally.total("judged.block") == 1.75


def test_the_order_of_traces_is_nothing():
    traces = random_traces(12, 9, 3, seed=5, ended=True)
    shuffled = random.Random(0).sample(traces, len(traces))
    assert summarize(Tally.of(traces)) == summarize(Tally.of(shuffled))


@pytest.mark.parametrize("seed", range(3))
def test_rows_read_back_to_the_same_numbers(seed: int):
    tally = Tally.of(random_traces(7, 11, 2 + seed, seed, ended=True))
    rows = json.loads(json.dumps(tally.to_rows()))
    assert summarize(Tally.from_rows(rows)) == summarize(tally)


def test_a_prompt_stays_one_cluster_in_several_runs():
    first, second = random_traces(20, 10, 3, seed=0), random_traces(20, 10, 3, seed=1)
    turns = [make_trace(trace.prompt_id, *trace.steps, turn=1) for trace in second]
    together = pooled([Tally.of(first), Tally.of(second)])
    as_turns = Tally.of([*first, *turns])
    assert together.num_prompts == 20
    for name in ("num_steps", "num_emitted", "largest_drafted", "num_turns"):
        assert np.array_equal(together.column(name), as_turns.column(name))


def test_runs_of_unlike_prompts_pool_to_all_of_them():
    tally = pooled([Tally.of([make_trace("b", *JUDGED)]), Tally.of([make_trace("a")])])
    assert tally.prompt_ids == ("a", "b")
    assert tally.column("judged.block").tolist() == [0, 1.75]


def test_some_prompts_can_be_kept():
    tally = Tally.of(example())
    kept = tally.where([prompt_id == "b" for prompt_id in tally.prompt_ids])
    assert summarize(kept) == summarize(Tally.of(example()[1:]))
    assert kept.column("finished.length").tolist() == [0]
