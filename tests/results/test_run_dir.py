"""A run directory says at any moment what it holds, and never claims more."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec.core.errors import UserError
from specdec.core.jsonl import write_json
from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace
from specdec.metrics import Tally
from specdec.results.run_dir import RunDir, read_tally, read_traces, state_of

OPTIONS = {"gamma": 4, "word": "1e-3", "path": None}


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


HERE = {"device": "a machine", "argv": ["compare"]}
TURNS = {("a", 0): 1, ("b", 0): 1}


class Opened(RunDir):
    """A run directory in which decoding has begun, unless there is nothing to be done."""

    def __enter__(self) -> "Opened":
        super().__enter__()
        self.kept = [] if self.taken else self.begin(HERE, TURNS)
        return self


def open_run(path: Path, identity: str = "this", resume: bool = True) -> Opened:
    return Opened(path, OPTIONS, identity, resume)


def summarize(run_dir: RunDir, summary: dict[str, Any]) -> None:
    run_dir.summarize(summary, Tally.of([make_trace("a")]))


def break_off(path: Path, error: BaseException) -> None:
    """Raise in the middle of a run, after its first trace."""
    with open_run(path) as run_dir:
        run_dir.append(make_trace("a"))
        raise error


def status(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def prompts(traces: list[Trace]) -> list[str]:
    return [trace.prompt_id for trace in traces]


def test_a_run_is_started_and_then_complete(tmp_path: Path) -> None:
    path = tmp_path / "some" / "run"
    with open_run(path) as run_dir:
        assert (status(path)["state"], status(path)["error"]) == ("started", None)
        assert state_of(path) == "running"
        assert read_traces(path) == []
        run_dir.append(make_trace("a"))
        assert [trace.prompt_id for trace in read_traces(path)] == ["a"], "not there at once"
        summarize(run_dir, {"num_prompts": 1})
    assert status(path)["state"] == state_of(path) == "complete"
    assert json.loads((path / "summary.json").read_text()) == {"num_prompts": 1}
    assert json.loads((path / "provenance.json").read_text()) == HERE


def test_the_configuration_is_written_resolved(tmp_path: Path) -> None:
    with open_run(tmp_path):
        pass
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == OPTIONS


def test_ctrl_c_is_not_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, KeyboardInterrupt())
    assert (status(tmp_path)["state"], status(tmp_path)["error"]) == ("interrupted", None)
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


def test_a_complete_run_is_neither_decoded_again_nor_overwritten(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        run_dir.append(make_trace("a"))
        summarize(run_dir, {"num_prompts": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with open_run(tmp_path) as again:
        assert again.taken == "complete"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_is_forced_takes_nothing_over(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        run_dir.append(make_trace("a"))
        summarize(run_dir, {"num_prompts": 1})
    with open_run(tmp_path, resume=False) as again:
        assert again.taken is None
        assert again.kept == read_traces(tmp_path) == []
        assert not (tmp_path / "summary.json").exists(), "numbers of another run"
        assert not (tmp_path / "tally.jsonl").exists(), "numbers of another run"


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_starts_before_decoding_has_no_results(tmp_path: Path, resume: bool) -> None:
    """But it keeps its traces, if it is resumed."""
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, KeyboardInterrupt())
    write_json(tmp_path / "summary.json", {})
    with RunDir(tmp_path, OPTIONS, "this", resume) as run_dir:
        run_dir.start()
        assert status(tmp_path)["state"] == "started"
        assert not (tmp_path / "summary.json").exists()
        assert run_dir.begin(HERE, TURNS) == ([make_trace("a")] if resume else [])
    assert state_of(tmp_path) == "complete"


def test_a_run_of_other_options_is_not_overwritten(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        run_dir.append(make_trace("a"))
    with pytest.raises(UserError, match="other options"), open_run(tmp_path, "another"):
        pytest.fail("it was opened")
    assert prompts(read_traces(tmp_path)) == ["a"]
    with open_run(tmp_path):  # the lock was given back
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_what_was_interrupted_goes_on(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        break_off(tmp_path, error)
    with open_run(tmp_path) as run_dir:
        assert run_dir.kept == read_traces(tmp_path) == [make_trace("a")]


def test_a_killed_run_goes_on_before_the_line_that_was_torn(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, KeyboardInterrupt())
    kill(tmp_path)
    assert state_of(tmp_path) == "interrupted"
    with open_run(tmp_path) as run_dir:
        assert prompts(run_dir.kept) == ["a"]
        run_dir.append(make_trace("b"))
    assert prompts(read_traces(tmp_path)) == ["a", "b"]


def kill(path: Path) -> None:
    """Leave a run as SIGKILL does in the middle of a write."""
    write_json(path / "status.json", {**status(path), "state": "started"})
    with (path / "traces.jsonl").open("a") as file:
        file.write('{"prompt_id": "b", "cat')


def test_prompts_whose_turns_are_not_all_there_are_decoded_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, KeyboardInterrupt())
    with RunDir(tmp_path, OPTIONS, "this") as run_dir:
        assert run_dir.begin(HERE, {("a", 0): 2, ("b", 0): 1}) == []


@pytest.mark.parametrize("name", ["device", "num_threads", "versions", "dtype"])
def test_seconds_of_other_circumstances_are_not_mixed(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, KeyboardInterrupt())
    with RunDir(tmp_path, OPTIONS, "this") as run_dir:
        assert run_dir.begin({**HERE, name: "other"}, TURNS) == []


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    with open_run(tmp_path) as first, open_run(tmp_path) as second:
        assert first.taken is None
        assert second.taken == "being decoded by another process"
        first.append(make_trace("a"))
    assert state_of(tmp_path) == "complete"
    assert prompts(read_traces(tmp_path)) == ["a"]


def test_sums_are_kept_and_are_those_of_the_traces(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        run_dir.append(make_trace("a"))
        assert read_tally(tmp_path).to_rows() == Tally.of([make_trace("a")]).to_rows()
        summarize(run_dir, {})
        (tmp_path / "traces.jsonl").unlink()
        assert read_tally(tmp_path).to_rows() == Tally.of([make_trace("a")]).to_rows()


def test_damaged_sums_are_named(tmp_path: Path) -> None:
    (tmp_path / "tally.jsonl").write_text('{"prompt_id": "a"}\n')
    with pytest.raises(UserError, match=r"tally\.jsonl: damaged"):
        read_tally(tmp_path)


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        summarize(run_dir, {})
    assert {path.name for path in tmp_path.iterdir() if path.name != ".lock"} == {
        *("config.yaml", "provenance.json", "status.json", "summary.json"),
        *("tally.jsonl", "traces.jsonl"),
    }


def test_a_crash_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    with open_run(tmp_path) as run_dir:
        summarize(run_dir, {"num_prompts": 1})
        with pytest.raises(TypeError):
            summarize(run_dir, {"num_prompts": object()})
        assert json.loads((tmp_path / "summary.json").read_text()) == {"num_prompts": 1}


def test_half_a_line_is_named(tmp_path: Path) -> None:
    """A machine that went down in the middle of a write: the file says where."""
    with open_run(tmp_path) as run_dir:
        run_dir.append(make_trace("a"))
    path = tmp_path / "traces.jsonl"
    path.write_text(path.read_text() + '{"prompt_id": "b", "cat')
    with pytest.raises(UserError, match=r"traces\.jsonl:2"):
        read_traces(tmp_path)
