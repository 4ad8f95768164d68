"""Lessons beside decoding: when they are over does not matter, and nothing of them is lost."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from specdec.online import lesson
from specdec.online.learner import Distiller
from specdec.online.student import Student
from tests.online.learning import BESIDE, decoder, draft_model, requests, taught, verifier
from tests.online.test_learning import PROMPT, SIZE, run, timeless

SLOW = 0.02  # seconds: more than both steps take that a lesson goes on beside


def slowly(learner: Distiller, monkeypatch: pytest.MonkeyPatch, seconds: float = SLOW) -> None:
    """Let each lesson of a learner take a while."""
    update = learner._update

    def late(*args: Any) -> None:
        time.sleep(seconds)
        update(*args)

    monkeypatch.setattr(learner, "_update", late)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("swap", ["step", "request"])
def test_slow_lessons_write_the_same_traces(
    monkeypatch: pytest.MonkeyPatch, swap: str, batch: int
) -> None:
    of, found = verifier(SIZE), []
    for is_slow in (False, False, True):
        proposer = draft_model(SIZE)
        learner = taught(proposer, of, **BESIDE, swap=swap)
        if is_slow:
            slowly(learner, monkeypatch)
        found.append(timeless(run(learner, proposer, of, range(4), batch)))
        assert learner.num_updates > 3
    assert found[0] == found[1] == found[2]
    still = timeless(run(taught(draft_model(SIZE), of), draft_model(SIZE), of, range(4), batch))
    assert found[0] != still, "nothing was learned"


def test_weights_change_behind_the_step_that_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a lesson was over long before, or must be waited for."""
    of = verifier(SIZE)
    for seconds in (0.0, SLOW):
        proposer = draft_model(SIZE)
        learner = taught(proposer, of, **BESIDE)
        slowly(learner, monkeypatch, seconds)
        weights, learn = learner._student.drafting, learner.learn
        changed: list[int] = []

        def noting(
            contexts: Any,
            learner: Distiller = learner,
            weights: torch.nn.Module = weights,
            learn: Callable[[Any], None] = learn,
            changed: list[int] = changed,
        ) -> None:
            before = [weight.clone() for weight in weights.parameters()]
            learn(contexts)
            if not all(map(torch.equal, before, weights.parameters())):
                changed.append(learner.num_steps)

        monkeypatch.setattr(learner, "learn", noting)
        run(learner, proposer, of, range(1))
        # The first lesson begins behind step 3, and is handed over behind step 5.
        assert changed == list(range(5, learner.num_steps + 1, 3))
        assert len(changed) > 1


def test_decoding_goes_on_beside_a_lesson(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first lesson does not end before a step has come after it, whose end it would be at."""
    of, proposer = verifier(SIZE), draft_model(SIZE)
    learner = taught(proposer, of, **BESIDE)
    update, went_on = learner._update, threading.Event()

    def waiting(*args: Any) -> None:
        assert went_on.wait(timeout=30)
        update(*args)

    def noting(contexts: Any, learn: Callable[[Any], None] = learner.learn) -> None:
        if learner.num_updates:
            went_on.set()
        learn(contexts)

    monkeypatch.setattr(learner, "_update", waiting)
    monkeypatch.setattr(learner, "learn", noting)
    run(learner, proposer, of, range(1))
    assert went_on.is_set()


@pytest.mark.parametrize("options", [{}, BESIDE])
def test_what_a_lesson_raises_ends_decoding(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    of, proposer = verifier(SIZE), draft_model(SIZE)
    learner = taught(proposer, of, **options)
    loss, at = learner._student.loss, 2

    def failing(*args: Any) -> Any:
        if learner.num_updates > at:
            raise torch.OutOfMemoryError("no memory for a lesson")
        return loss(*args)

    monkeypatch.setattr(
        learner, "_student", Student(learner._student.trained, learner._student.drafting, failing)
    )
    with pytest.raises(torch.OutOfMemoryError, match="no memory for a lesson"):
        run(learner, proposer, of, range(4))
    assert learner.num_updates == at + 1, "decoding went on"
    at = 10**6
    run(learner, proposer, of, range(1))  # the thread has survived
    assert learner.num_updates > 3


def test_a_lesson_that_fails_behind_the_last_step_is_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, proposer = verifier(SIZE), draft_model(SIZE)
    still = decoder(of, draft_model(SIZE), None, 1.0, 16).decode(requests(1, PROMPT))
    num_steps = len(still[0].steps)
    learner = taught(proposer, of, every=num_steps, delay=num_steps - 1)

    def failing(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(learner, "_update", failing)
    with pytest.raises(ZeroDivisionError):
        run(learner, proposer, of, range(1))
    assert learner.num_steps == num_steps


def test_who_stops_within_a_lesson_finds_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted: the lesson ends by itself, and what was learned is whole."""
    of, proposer = verifier(SIZE), draft_model(SIZE)
    learner = taught(proposer, of, every=3, delay=2)
    slowly(learner, monkeypatch, 0.2)
    learn = learner.learn

    def interrupted(contexts: Any) -> None:
        learn(contexts)
        if learner.num_steps == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(learner, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(learner, proposer, of, range(1))
    kept = learner.state()
    assert (kept["num_steps"], kept["num_updates"]) == (4, 1)
    assert all(map(torch.equal, kept["weights"].values(), weights_of(learner)))
    monkeypatch.setattr(learner, "learn", learn)
    other = draft_model(SIZE)
    further = taught(other, of, every=3, delay=2)
    further.restore(kept)
    assert timeless(run(learner, proposer, of, range(1, 3))) == timeless(
        run(further, other, of, range(1, 3))
    )


def test_an_interruption_while_a_lesson_is_waited_for_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, proposer = verifier(SIZE), draft_model(SIZE)
    learner = taught(proposer, of, **BESIDE)
    slowly(learner, monkeypatch)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lesson, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(learner, proposer, of, range(1))
    before = [weight.clone() for weight in weights_of(learner)]
    kept = learner.state()
    assert (kept["num_steps"], kept["num_updates"]) == (5, 1)
    assert all(map(torch.equal, kept["weights"].values(), weights_of(learner)))
    assert not all(map(torch.equal, before, weights_of(learner)))


def test_who_was_interrupted_as_it_waited_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    of, proposer = verifier(SIZE), draft_model(SIZE)
    learner = taught(proposer, of, every=2)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lesson, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(learner, proposer, of, range(1))
    run(learner, proposer, of, range(1, 3))
    assert learner.num_updates == learner.num_steps // 2 > 2


def weights_of(learner: Distiller) -> list[torch.Tensor]:
    """Return what is drafted with."""
    return list(learner._student.drafting.state_dict().values())
