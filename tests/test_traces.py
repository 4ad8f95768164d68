"""The gate for refactors: nothing has changed since tests/traces.txt, and it notices what does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace
from tests.support.toy_parts import stems
from tests.support.toy_traces import Decoded
from tests.traces import STORED, decoded_line, differences, read, run


@pytest.mark.whole
@pytest.mark.thorough
@pytest.mark.usefixtures("fresh_accelerator")
def test_nothing_has_changed(tmp_path: Path) -> None:
    changes = differences(read(STORED), run(tmp_path))
    assert not changes, "\n".join([*changes, "if it is right: make traces UPDATE=1, and LOG.md"])


@pytest.mark.parametrize("group", ["proposer", "tree", "verification", "train", "loss"])
def test_every_plug_in_is_among_the_cases(group: str) -> None:
    words = {word for name in read(STORED) for word in name.replace(",", " ").split()}
    assert stems(group)
    assert not set(stems(group)) - words


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("loss=6.23229 tau=0", []),
        ("loss=6.23249 tau=1e-6", []),  # rounding of float32
        ("loss=6.23329 tau=0", ["changed: a"]),
        ("loss=6.23229 tau=0.001", ["changed: a"]),
        ("loss=nan tau=0", ["changed: a"]),
        ("loss=6.23229", ["changed: a"]),
        ("loss=6.23229 tau=0 traces:00ff", ["changed: a"]),
    ],
)
def test_changed_numbers_are_noticed(found: str, said: list[str]) -> None:
    changes = differences({"a": "loss=6.23229 tau=0"}, {"a": found})
    assert [change.splitlines()[0] for change in changes] == said


def test_lines_that_are_new_or_gone_are_noticed() -> None:
    changes = differences({"a": "tau=1", "b": "tau=1"}, {"b": "tau=1", "c": "tau=2"})
    assert changes == ["gone: a", "new: c | tau=2"]


STEP = Step(3, 2, 1, 2, Outcome.RECOVERED, (0.75, 0.5), 2, 1.25, candidates=((0, 5), (0, 6)))
TEXT = Trace("a", "", 0, 4, (5, 7), "", "length", 1.0, (STEP,))


@pytest.mark.parametrize(
    "step",
    [
        replace(STEP, accepted=0),
        replace(STEP, overlap=(0.75, 0.500001)),
        replace(STEP, candidates=((0, 5), (1, 6))),
        replace(STEP, expected_accepted=None),
        replace(STEP, outcome=Outcome.BONUS),
    ],
    ids=["accepted", "overlap", "candidates", "expected_accepted", "outcome"],
)
def test_changed_steps_are_noticed(step: Step) -> None:
    assert changes([TEXT], [replace(TEXT, steps=(step,))])


def test_a_changed_token_is_noticed_and_the_sign_of_zero_is_not() -> None:
    assert changes([TEXT], [replace(TEXT, output_ids=(5, 8))])
    zero, negative = (replace(STEP, overlap=(0.5, value)) for value in (0.0, -0.0))
    assert not changes([replace(TEXT, steps=(zero,))], [replace(TEXT, steps=(negative,))])


def changes(before: Sequence[Trace], after: Sequence[Trace]) -> list[str]:
    """Compare the lines of two lists of texts."""
    lines = [dict([decoded_line(Decoded("a", traces))]) for traces in (before, after)]
    return differences(*lines)
