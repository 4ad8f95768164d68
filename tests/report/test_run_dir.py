"""A run directory says at any moment what it holds, and never claims more."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from specdec.core.errors import UserError
from specdec.core.trace import Step, Trace
from specdec.core.values import Outcome
from specdec.report.run_dir import RunDir, read_traces

CONFIG = OmegaConf.create({"gamma": 4, "same": "${gamma}", "path": None})


def make_trace(prompt_id: str, text: str = "text") -> Trace:
    """Make a trace of two steps; a third of a second has no end in decimal digits."""
    steps = tuple(
        Step(
            drafted=3,
            depth=3,
            accepted=accepted,
            emitted=accepted + 1,
            outcome=outcome,
            overlap=(1 / 3, 2 / 3),
            draft_calls=3,
            propose_seconds=1 / 3,
            verify_seconds=2 / 7,
            other_seconds=1e-7 / 3,
        )
        for accepted, outcome in ((1, Outcome.RECOVERED), (3, Outcome.BONUS))
    )
    return Trace(prompt_id, "any", 0, 7, (1, 2, 3, 4, 5, 6), text, "length", 1 / 9, steps)


def open_run(path: Path) -> RunDir:
    return RunDir(path, CONFIG, {"argv": ["compare"]})


def break_off(path: Path, error: BaseException) -> None:
    """Raise in the middle of a run, after its first trace."""
    with open_run(path) as run_dir:
        run_dir.append(make_trace("a"))
        raise error


def status(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def test_a_run_is_started_and_then_complete(tmp_path: Path) -> None:
    path = tmp_path / "some" / "run"
    with open_run(path) as run_dir:
        assert status(path) == {"state": "started", "error": None}
        assert read_traces(path) == []
        run_dir.append(make_trace("a"))
        assert [trace.prompt_id for trace in read_traces(path)] == ["a"], "not there at once"
        run_dir.summarize({"num_prompts": 1})
    assert status(path)["state"] == "complete"
    assert json.loads((path / "summary.json").read_text()) == {"num_prompts": 1}
    assert json.loads((path / "provenance.json").read_text()) == {"argv": ["compare"]}


def test_the_configuration_is_written_resolved(tmp_path: Path) -> None:
    with open_run(tmp_path):
        pass
    assert OmegaConf.load(tmp_path / "config.yaml") == {"gamma": 4, "same": 4, "path": None}


def test_ctrl_c_is_not_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, KeyboardInterrupt())
    assert status(tmp_path) == {"state": "interrupted", "error": None}
    assert len(read_traces(tmp_path)) == 1


def test_a_failure_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off(tmp_path, ZeroDivisionError("by nothing"))
    assert status(tmp_path)["state"] == "failed"
    assert "by nothing" in status(tmp_path)["error"]
    assert "test_run_dir.py" in status(tmp_path)["error"], "without the place it helps nobody"
    assert len(read_traces(tmp_path)) == 1


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every number is derived from what is on disk, so nothing may be rounded on the way."""
    trace = make_trace("a", 'two\nlines, "quotes", \u4e8c \U0001f600 \u2028 end')
    with open_run(tmp_path) as run_dir:
        run_dir.append(trace)
        run_dir.append(make_trace("b"))
    assert read_traces(tmp_path) == [trace, make_trace("b")]


def test_a_second_run_takes_nothing_over_from_the_first(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        run_dir.append(make_trace("a"))
        run_dir.summarize({"num_prompts": 1})
    with open_run(tmp_path):
        assert status(tmp_path)["state"] == "started"
        assert read_traces(tmp_path) == []
        assert not (tmp_path / "summary.json").exists(), "numbers of another run"


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        run_dir.summarize({})
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml", "provenance.json", "status.json", "summary.json", "traces.jsonl",
    }  # fmt: skip


def test_a_crash_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        run_dir.summarize({"num_prompts": 1})
        with pytest.raises(TypeError):
            run_dir.summarize({"num_prompts": object()})
        assert json.loads((tmp_path / "summary.json").read_text()) == {"num_prompts": 1}


def test_half_a_line_is_named(tmp_path: Path) -> None:
    """A machine that went down in the middle of a write: the file says where."""
    with open_run(tmp_path) as run_dir:
        run_dir.append(make_trace("a"))
    path = tmp_path / "traces.jsonl"
    path.write_text(path.read_text() + '{"prompt_id": "b", "cat')
    with pytest.raises(UserError, match=r"traces\.jsonl:2"):
        read_traces(tmp_path)
