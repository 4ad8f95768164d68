"""What fails is said to have failed, in one line, and the same command makes it good."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from specdec.core.errors import Unwritable
from specdec.core.jsonl import read_jsonl
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.results.run_dir import state_of
from tests.support.complaints import assert_one_line
from tests.support.faults import files_of_at_most
from tests.support.marking import thorough
from tests.support.running import CommandLine, Tiny

if TYPE_CHECKING:
    from specdec.core.trace import Trace
    from specdec.decoding.request import Request

pytestmark = pytest.mark.usefixtures("empty_folder")


def sweep(tiny: Tiny, *more: str) -> list[str]:
    return ["-m", *tiny.options("sweep", "proposer=none,ngram", *more)]


def states() -> list[str]:
    return [state_of(file.parent) for file in sorted(Path("sweep").glob("*/.lock"))]


def texts(run: Path | str) -> dict[str, list[int]]:
    return {row["prompt_id"]: row["output_ids"] for _, row in read_jsonl(Path(run, "traces.jsonl"))}


# --- Full disks ---


@pytest.mark.parametrize("room", [thorough(0), 500, thorough(3_000), thorough(6_000)])
def test_a_sweep_on_a_full_disk_has_failed(tiny: Tiny, cli: CommandLine, room: int) -> None:
    """Wherever it gets full: at the lock, the status, the configuration, the traces."""
    with files_of_at_most(room):
        ended = cli("decode", *sweep(tiny))
    assert ended.status == 1, ended.out
    assert "cannot be written (File too large)" in ended.err
    assert "2 of 2 runs are not complete" in ended.err
    assert "Traceback" not in ended.err
    assert "another process" not in ended.out
    assert not {"complete", "running"} & set(states())
    assert cli("decode", *sweep(tiny)).status == 0
    assert states() == ["complete"] * 2


def test_a_report_that_cannot_be_written_fails_the_sweep(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Unwritable("sweep: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr("specdec.report.write.write_text", full)
        ended = cli("decode", *sweep(tiny))
    assert ended.status == 1
    assert "no report: sweep: cannot be written (No space left on device)" in ended.err
    assert states() == ["complete"] * 2


def test_a_launcher_that_fails_fails_the_sweep(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the cluster is down")

    monkeypatch.setattr(BasicLauncher, "launch", broken)
    ended = cli("decode", *sweep(tiny))
    assert ended.status == 1
    assert "failed: RuntimeError: the cluster is down" in ended.err
    assert "2 of 2 runs are not complete" in ended.err


@pytest.mark.parametrize("room", [thorough(0), 500, thorough(3_000), thorough(6_000)])
def test_one_run_on_a_full_disk_is_one_line(tiny: Tiny, cli: CommandLine, room: int) -> None:
    with files_of_at_most(room):
        assert_one_line(cli("decode", *tiny.options("run")), ["run", "cannot be written"])
    assert state_of(Path("run")) in ("new", "interrupted", "failed")
    assert cli("decode", *tiny.options("run")).status == 0
    assert state_of(Path("run")) == "complete"


def test_what_was_decoded_before_the_disk_was_full_is_kept(tiny: Tiny, cli: CommandLine) -> None:
    with files_of_at_most(6_000):
        assert cli("decode", *tiny.options("run")).status == 2
    kept = (Path("run") / "traces.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 3, "the test is blind"
    assert cli("decode", *tiny.options("run")).status == 0
    assert (Path("run") / "traces.jsonl").read_text().splitlines()[: len(kept)] == kept


# --- Success is what is there ---


FILES = ("config.yaml", "provenance.json", "traces.jsonl", "tally.jsonl", "summary.json")


@pytest.fixture(scope="module")
def whole_run(tiny: Tiny, cli: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli("decode", *tiny.options(folder)).status == 0
    return folder


@pytest.fixture
def copied(whole_run: Path, empty_folder: Path) -> Path:
    shutil.copytree(whole_run, "run")
    return Path("run")


def damage(file: Path, kind: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    if kind == "deleted":
        file.unlink()
    elif kind == "cut":
        file.write_text("".join(lines)[:-7])
    elif kind == "a line less":
        file.write_text("".join(lines[:-1]))
    else:  # one digit
        place = next(i for i, letter in enumerate(file.read_text()) if letter in "12345678")
        text = file.read_text()
        file.write_text(f"{text[:place]}{int(text[place]) + 1}{text[place + 1 :]}")


@pytest.mark.parametrize("kind", ["deleted", thorough("cut"), "a line less", thorough("garbled")])
@pytest.mark.parametrize("name", FILES)
def test_a_run_whose_files_are_others_is_not_complete(
    tiny: Tiny, cli: CommandLine, copied: Path, whole_run: Path, name: str, kind: str
) -> None:
    damage(copied / name, kind)
    assert state_of(copied) == "damaged"
    ended = cli("decode", *tiny.options("run"))
    assert ended.status == 0, ended.err
    assert state_of(copied) == "complete"
    assert texts(copied) == texts(whole_run)


@pytest.mark.parametrize("name", ["tally.jsonl", "summary.json", "config.yaml"])
def test_a_run_with_all_its_traces_is_finished_from_them(
    tiny: Tiny, cli: CommandLine, copied: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = (copied / "traces.jsonl").read_text()
    (copied / name).unlink()
    monkeypatch.setattr(SpeculativeDecoder, "stream", None)
    assert cli("decode", *tiny.options("run")).status == 0
    assert (copied / "traces.jsonl").read_text() == before


def test_damage_of_one_line_costs_no_other_prompt(
    tiny: Tiny, cli: CommandLine, copied: Path, whole_run: Path
) -> None:
    """Its number of tokens is still right, and it is valid JSON."""
    lines = (copied / "traces.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    row["output_ids"][0] += 1
    lines[1] = json.dumps(row)
    (copied / "traces.jsonl").write_text("\n".join(lines) + "\n")
    assert cli("decode", *tiny.options("run")).status == 0
    after = (copied / "traces.jsonl").read_text().splitlines()
    assert (after[0], after[2]) == (lines[0], lines[2])
    assert texts(copied) == texts(whole_run)


def test_traces_of_another_run_never_count(
    tiny: Tiny, cli: CommandLine, copied: Path, whole_run: Path
) -> None:
    """Even where nothing is left that says whose they are."""
    (copied / "status.json").unlink()
    before = (copied / "traces.jsonl").read_text()
    assert cli("decode", *tiny.options("run", "max_new_tokens=5")).status == 0
    assert all(len(ids) <= 5 for ids in texts(copied).values())
    assert (copied / "traces.jsonl").read_text() != before


def test_without_its_status_a_run_keeps_its_traces(
    tiny: Tiny, cli: CommandLine, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "status.json").write_text('{"state": "compl')
    monkeypatch.setattr(SpeculativeDecoder, "stream", None)
    assert cli("decode", *tiny.options("run")).status == 0
    assert state_of(copied) == "complete"


# --- Ends from outside ---


def stop_after(
    monkeypatch: pytest.MonkeyPatch, count: int, end: signal.Signals | BaseException
) -> None:
    """Let a signal or an error come in the middle of decoding."""
    stream = SpeculativeDecoder.stream
    seen = 0

    def stopping(self: SpeculativeDecoder, requests: list[Request]) -> Iterator[Trace]:
        nonlocal seen
        for trace in stream(self, requests):
            if self.stopping.max_new_tokens > 8:  # no warm-up
                seen += 1
                if seen == count + 1:
                    if isinstance(end, BaseException):
                        raise end
                    os.kill(os.getpid(), end)
            yield trace

    monkeypatch.setattr(SpeculativeDecoder, "stream", stopping)


@pytest.mark.parametrize(
    ("end", "status"),
    [(signal.SIGTERM, 143), (KeyboardInterrupt(), 130), (BrokenPipeError(), 141)],
    ids=["SIGTERM", "Ctrl-C", "nobody reads"],
)
@pytest.mark.parametrize("many", [False, thorough(True)])
def test_an_end_from_outside_is_no_failure(
    tiny: Tiny,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    end: signal.Signals | BaseException,
    status: int,
    many: bool,
) -> None:
    options = sweep(tiny) if many else tiny.options("run")
    with monkeypatch.context() as patch:
        stop_after(patch, 1, end)
        ended = cli("decode", *options)
    # A sweep whose reader is gone ends as one that was told to.
    assert ended.status == (130 if many and status == 141 else status)
    assert "Traceback" not in ended.err
    (run,) = [file.parent for file in Path().rglob("status.json")]
    assert state_of(run) == "interrupted"
    kept = texts(run)
    assert len(kept) == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert cli("decode", *options).status == 0
    assert kept.items() <= texts(run).items()


def test_a_failure_that_cannot_be_noted_gives_the_lock_back(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is that failure which is said, not the one of noting it."""
    from specdec.results import session

    write = session.write_json

    def full(path: Path, value: dict[str, object]) -> None:
        if value.get("state") == "failed":
            raise Unwritable(f"{path}: cannot be written (No space left on device)")
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(session, "write_json", full)
        stop_after(patch, 1, ZeroDivisionError("a bug"))
        ended = cli("decode", *sweep(tiny))
    assert ended.status == 1
    assert "ZeroDivisionError: a bug" in ended.err
    assert "No space" not in ended.err
    assert sorted(states()) == ["complete", "interrupted"]
