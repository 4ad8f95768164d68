"""Batches are read one step ahead: in order, once each, and what reading raises comes through."""

import threading
from pathlib import Path

import pytest
import torch

from specdec.lm.load import load
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.objective import Batch
from specdec.training.read_ahead import ReadAhead
from tests.support.running import Tiny

PATIENCE = 10.0  # seconds


class Reader:
    """Notes which steps were read, and in which threads."""

    def __init__(self, fails_at: int | None = None):
        self.fails_at = fails_at
        self.steps: list[int] = []
        self.threads: set[int] = set()
        self.begun = {step: threading.Event() for step in range(9)}

    def __call__(self, step: int) -> list[Batch]:
        self.begun[step].set()
        self.steps.append(step)
        self.threads.add(threading.get_ident())
        if step == self.fails_at:
            raise KeyboardInterrupt(f"step {step}")
        return [Batch.of(torch.full((1, 2), step))]


def test_each_step_is_read_once_and_in_order() -> None:
    read = Reader()
    ahead = ReadAhead(read, end=5)
    found = [int(batch.token_ids[0, 0]) for step in range(5) for batch in ahead.of(step)]
    assert found == read.steps == [0, 1, 2, 3, 4], "nothing behind the end is read"
    assert len(read.threads) == 1
    assert threading.get_ident() not in read.threads


def test_the_next_step_is_read_before_it_is_asked_for() -> None:
    read = Reader()
    ahead = ReadAhead(read, end=5)
    ahead.of(3)
    assert read.begun[4].wait(PATIENCE)


def test_another_step_than_the_next_one_may_be_asked_for() -> None:
    ahead = ReadAhead(Reader(), end=9)
    assert [int(ahead.of(step)[0].token_ids[0, 0]) for step in (2, 6, 6, 1)] == [2, 6, 6, 1]


def test_what_reading_raises_comes_with_its_own_step() -> None:
    ahead = ReadAhead(Reader(fails_at=2), end=5)
    ahead.of(0)
    ahead.of(1)  # while which step 2 has failed
    with pytest.raises(KeyboardInterrupt, match="step 2"):
        ahead.of(2)


def test_stored_states_come_with_their_batch(tiny: Tiny, tmp_path: Path) -> None:
    text, cache = str(tiny.text), str(tmp_path / "cache")
    verifier = load(str(tiny.verifier))
    states = VerifierStates(verifier, text, text, 16, eval_samples=2, cache_path=cache)
    states.prepare()
    assert states.batch(0, 4).hidden is None, "nothing is stored yet"
    expected = states.hidden(states.batch(0, 4))
    assert states.batch(2, 4).hidden is None, "half of it is stored"
    stored = states.batch(0, 4)
    assert stored.hidden is not None
    torch.testing.assert_close(stored.hidden, expected, rtol=0, atol=0)
    torch.testing.assert_close(states.hidden(stored), expected, rtol=0, atol=0)
