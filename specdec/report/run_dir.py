"""A run directory: everything a number came from, readable at any moment, even after SIGKILL."""

import json
import os
import platform
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from specdec.core.errors import UserError
from specdec.core.jsonl import read_jsonl, whole_rows, write_json, write_jsonl, write_text
from specdec.core.trace import Trace
from specdec.metrics import Tally

COMPLETE = "complete"
# Traces of an interrupted session count only if these are still the same: seconds are in them.
CIRCUMSTANCES = ("versions", "device", "num_threads", "num_processes", "dtype", "attention")


class TraceFile:
    """A file that grows by one whole line for each trace."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, trace: Trace) -> None:
        """Add one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trace.to_row(), ensure_ascii=False) + "\n")


def trace_file(run: Path, rank: int) -> TraceFile:
    """Return where a process writes: the main one into the run's own file, others beside it."""
    return TraceFile(run / ("traces.jsonl" if rank == 0 else f"traces.part-{rank}.jsonl"))


class RunDir:
    """Write `config.yaml`, `provenance.json`, `traces.jsonl`, `tally.jsonl`, `summary.json`.

    Used as a context manager, which holds a lock: no two processes write one run. Whoever enters
    looks at `taken` first. Nothing is changed before `start`, or `begin`, which starts what was
    not; from then on `status.json` says "started", and leaving well makes it "complete", Ctrl-C
    "interrupted", and any other exception "failed", with its traceback. With `one_of_many` a
    failure before that is noted, too.

    Raises (on entering):
        UserError: the folder holds a run of other options.
    """

    def __init__(
        self,
        path: Path,
        config: DictConfig,
        identity: str,
        resume: bool = True,
        one_of_many: bool = False,
    ):
        self.path = path
        self.taken: str | None = None  # why nothing is to be done here
        self._config = config
        self._identity = identity
        self._resume = resume
        self._one_of_many = one_of_many
        self._has_started = False
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> "RunDir":
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=1)  # somebody may just be looking whether it is held
        except Timeout:
            self.taken = "being decoded by another process"
            return self
        try:
            self._look_around()
        except BaseException:
            self._lock.release()
            raise
        self._entered = time.time()
        return self

    def _look_around(self) -> None:
        """Find out whether there is anything to be done."""
        before = read_status(self.path)
        if not self._resume or before is None:
            return
        if before["identity"] != self._identity:
            raise UserError(
                f"{self.path}: holds a run of other options; expected another folder,"
                " hydra.run.dir=DIR, or resume=false to replace it"
            )
        if before["state"] == COMPLETE:
            self.taken = "complete"

    def start(self) -> None:
        """Say that a session is at work, and remove the results of the ones before it.

        Traces stay, unless the run is not to be resumed. Whoever does more than decoding starts
        beforehand: a run must never be called complete while something is made that it rests on.
        """
        self._has_started = True
        self._status("started")
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(self._config, resolve=True))
        stale = ["summary.json", "tally.jsonl", "tokens.jsonl"]
        if not self._resume:
            stale += ["provenance.json"]
            stale += [file.name for file in self._trace_files()]
        for name in stale:
            (self.path / name).unlink(missing_ok=True)

    def begin(self, provenance: Mapping[str, Any], num_turns: Mapping[str, int]) -> list[Trace]:
        """Write `provenance.json`; return what an interrupted session left that still counts.

        That is every prompt of `num_turns` with all of its turns, if it was decoded under the same
        circumstances: the same noise belongs to a prompt whenever it is decoded.
        """
        if not self._has_started:
            self.start()
        file = self.path / "provenance.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        write_json(file, provenance)
        kept: list[Trace] = []
        plain = json.loads(json.dumps(provenance))
        if before is not None and all(before.get(n) == plain.get(n) for n in CIRCUMSTANCES):
            kept = _whole_prompts(self._trace_files(), num_turns)
        self._rewrite(kept)
        return kept

    def append(self, trace: Trace) -> None:
        """Add one line to `traces.jsonl`."""
        trace_file(self.path, rank=0).append(trace)

    def unite(self, num_turns: Mapping[str, int]) -> list[Trace]:
        """Bring what all processes wrote into `traces.jsonl`, in the order of the prompts."""
        places = {prompt_id: place for place, prompt_id in enumerate(num_turns)}
        traces = _whole_prompts(self._trace_files(), num_turns)
        traces.sort(key=lambda trace: (places[trace.prompt_id], trace.turn))
        self._rewrite(traces)
        return traces

    def _trace_files(self) -> list[Path]:
        return [self.path / "traces.jsonl", *sorted(self.path.glob("traces.part-*.jsonl"))]

    def _rewrite(self, traces: Sequence[Trace]) -> None:
        write_jsonl(self.path / "traces.jsonl", [trace.to_row() for trace in traces])
        for part in self.path.glob("traces.part-*.jsonl"):
            part.unlink()

    def summarize(self, summary: Mapping[str, Any], tally: Tally) -> None:
        """Write `summary.json`, and `tally.jsonl`, which is all that comparisons need."""
        write_jsonl(self.path / "tally.jsonl", tally.to_rows())
        write_json(self.path / "summary.json", summary)

    def show_tokens(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `tokens.jsonl`: texts to look at, token by token."""
        write_jsonl(self.path / "tokens.jsonl", rows)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.taken is None and (self._has_started or (error is not None and self._one_of_many)):
            if error is None:
                self._status(COMPLETE)
            elif isinstance(error, KeyboardInterrupt):
                self._status("interrupted")
            else:
                error.add_note(self.path.name)  # for whoever goes on with other runs
                self._status("failed", error)
        self._lock.release()

    def _status(self, state: str, error: BaseException | None = None) -> None:
        status = {
            "state": state,
            "error": None if error is None else "".join(traceback.format_exception(error)),
            "identity": self._identity,
            "host": platform.node(),
            "pid": os.getpid(),
            "seconds": round(time.time() - self._entered, 3),
        }
        write_json(self.path / "status.json", status)


def read_status(path: Path) -> dict[str, Any] | None:
    """Return what `status.json` says; None where there is none, or none that can be read."""
    try:
        found = json.loads((path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"state", "identity"} <= found.keys() else None


def state_of(path: Path) -> str:
    """Return `new`, `running`, `interrupted`, `failed` or `complete`; killed runs are interrupted.

    A run is running as long as a process holds its lock.
    """
    status = read_status(path)
    state = "new" if status is None else status["state"]
    if state == COMPLETE:
        return state
    if _is_locked(path / ".lock"):
        return "running"
    return "interrupted" if state == "started" else state


def _is_locked(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True


def read_tally(path: Path) -> Tally:
    """Return the sums of a run, from its traces if it was not finished.

    Raises:
        UserError: there is neither, or a line is damaged.
    """
    file = path / "tally.jsonl"
    if not file.exists():
        return Tally.of(read_traces(path))
    rows = [row for _, row in read_jsonl(file)]
    try:
        return Tally.from_rows(rows)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error})") from None


def _whole_prompts(files: Sequence[Path], num_turns: Mapping[str, int]) -> list[Trace]:
    """Read traces up to a line that is torn, and keep the prompts of which no turn is missing."""
    try:
        rows = [row for file in files for row in whole_rows(file)]
        # One of each: whoever was killed while uniting files leaves some twice.
        traces = list({(t.prompt_id, t.turn): t for t in map(Trace.from_row, rows)}.values())
    except (KeyError, TypeError, ValueError):  # of an older version
        return []
    turns = Counter(trace.prompt_id for trace in traces)
    return [trace for trace in traces if turns[trace.prompt_id] == num_turns.get(trace.prompt_id)]


def read_traces(path: Path) -> list[Trace]:
    """Read the traces of a run directory.

    Raises:
        UserError: there are none, or a line is not what `to_row` wrote.
    """
    file = path / "traces.jsonl"
    traces: list[Trace] = []
    for number, row in read_jsonl(file):
        try:
            traces.append(Trace.from_row(row))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}:{number}: not a trace of this version ({type(error).__name__}: {error})"
            ) from None
    return traces
