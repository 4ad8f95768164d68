"""A run directory: everything a number came from, readable at any moment, even after SIGKILL."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.jsonl import (
    read_jsonl,
    unsealed,
    whole_rows,
    write_json,
    write_jsonl,
    write_text,
    writing,
)
from specdec.core.trace import PlainSteps, PromptKey, Trace
from specdec.core.vouching import read_note
from specdec.metrics import Tally
from specdec.results.saved_options import to_yaml
from specdec.results.session import COMPLETE, Session, read_status
from specdec.results.trace_file import OF, TraceFile, trace_file

LEARNER = "learner.pt"  # of a run whose proposer learns: what it has learned
# What a complete run consists of, and `status.json` vouches for.
FILES = (
    *("config.yaml", "provenance.json", "traces.jsonl"),
    *("clock.jsonl", "tally.jsonl", "summary.json", "tokens.jsonl", LEARNER),
)
# Traces of an interrupted session count only if these are still the same: seconds are in them.
CIRCUMSTANCES = (
    "versions",
    "source",
    "device",
    "num_threads",
    "num_processes",
    "dtype",
    "attention",
    "runtime",
)


class RunDir(Session):
    """Write `config.yaml`, `provenance.json`, `traces.jsonl`, `tally.jsonl`, `summary.json`.

    Beside the traces lies their clock, `clock.jsonl` (see `PlainSteps`), if they have any. Nothing
    is changed before `start`, or `begin`, which starts what was not.

    Raises (on entering):
        UserError: the folder holds a run of other options, or cannot be written.
    """

    files = FILES
    at_work = "being decoded by another process"

    def __init__(
        self,
        path: Path,
        options: Mapping[str, Any],
        identity: str,
        resume: bool = True,
        one_of_many: bool = False,
    ):
        super().__init__(path, identity, one_of_many)
        self._options = options
        self._resume = resume

    def __enter__(self) -> "RunDir":
        super().__enter__()
        return self

    def _look_around(self) -> None:
        """Find out whether there is anything to be done."""
        before = read_status(self.path)
        if not self._resume or before is None:
            return
        if before["identity"] != self._identity:
            raise UserError(
                f"{self.path}: holds a run of other options; expected another folder,"
                " output=DIR, or resume=false to replace it"
            )
        if before["state"] == COMPLETE and self.bears_out(self.path, before):
            self.taken = COMPLETE

    def start(self) -> None:
        """Say that a session is at work, and remove the results of the ones before it.

        Traces stay, unless the run is not to be resumed. Whoever does more than decoding starts
        beforehand: a run must never be called complete while something is made that it rests on.
        """
        self._say_started()
        write_text(self.path / "config.yaml", to_yaml(self._options))
        stale = ["summary.json", "tally.jsonl", "tokens.jsonl"]
        if not self._resume:
            stale += ["provenance.json", LEARNER]
            stale += [file.name for file in (*self._trace_files(), *self._clock_files())]
        with writing(self.path):
            for name in stale:
                (self.path / name).unlink(missing_ok=True)

    def begin(
        self, provenance: Mapping[str, Any], num_turns: Mapping[PromptKey, int]
    ) -> list[Trace]:
        """Write `provenance.json`; return what an interrupted session left that still counts.

        That is every sample of `num_turns` with all of its turns, if it was decoded under the same
        circumstances: the same noise belongs to a sample whenever it is decoded.
        """
        if not self._has_started:
            self.start()
        file = self.path / "provenance.json"
        before = read_note(file)
        write_json(file, provenance)
        kept: list[Trace] = []
        plain = json.loads(json.dumps(provenance))
        if before is not None and all(before.get(n) == plain.get(n) for n in CIRCUMSTANCES):
            kept = self._whole_prompts(num_turns)
        self._rewrite(kept)
        if not kept:  # no learner has learned from these
            with writing(self.path):
                (self.path / LEARNER).unlink(missing_ok=True)
        return kept

    @property
    def resumes(self) -> bool:
        """Whether what an interrupted session left may count."""
        return self._resume

    def append(self, trace: Trace) -> None:
        """Add one line to `traces.jsonl`."""
        self.trace_file(rank=0).append(trace)

    def trace_file(self, rank: int) -> TraceFile:
        """Return where a process writes."""
        return trace_file(self.path, rank, self._identity)

    def unite(self, num_turns: Mapping[PromptKey, int]) -> list[Trace]:
        """Bring what all processes wrote into `traces.jsonl`, in the order of the prompts."""
        places = {key: place for place, key in enumerate(num_turns)}
        traces = self._whole_prompts(num_turns)
        traces.sort(key=lambda trace: (places[trace.prompt_key], trace.turn))
        self._rewrite(traces)
        return traces

    def _trace_files(self) -> list[Path]:
        return [self.path / "traces.jsonl", *sorted(self.path.glob("traces.part-*.jsonl"))]

    def _clock_files(self) -> list[Path]:
        return [self.path / "clock.jsonl", *sorted(self.path.glob("clock.part-*.jsonl"))]

    def _rewrite(self, traces: Sequence[Trace]) -> None:
        """Bring files of parts into one each; what was timed beside other texts goes."""
        if any(file.exists() for file in self._clock_files()):
            self.keep_clock(self._clock_of(traces))
        file = self.trace_file(rank=0)
        write_jsonl(file.path, map(file.row, traces))
        with writing(self.path):
            for part in (*self._trace_files()[1:], *self._clock_files()[1:]):
                part.unlink()

    def keep_clock(self, clock: Sequence[PlainSteps]) -> None:
        """Write the plain steps that were timed beside the traces."""
        file = self.trace_file(rank=0).clock
        write_jsonl(file.path, map(file.row, clock))

    def _clock_of(self, traces: Sequence[Trace]) -> list[PlainSteps]:
        """Read what was timed beside these texts, as far as it is as written."""
        turns = {trace.key for trace in traces}
        rows = [row for file in self._clock_files() for row in whole_rows(file)]
        try:
            found = [PlainSteps(**row) for row in rows if row.pop(OF, None) == self._identity]
        except TypeError:  # of another version
            return []
        last = {plain.key: plain for plain in found}
        return [plain for turn, plain in last.items() if turn in turns]

    def _whole_prompts(self, num_turns: Mapping[PromptKey, int]) -> list[Trace]:
        """Read the traces that are of this run and as written, of samples without a missing turn.

        Damage of a line costs no other prompt.
        """
        rows = [row for file in self._trace_files() for row in whole_rows(file)]
        try:
            found = [Trace.from_row(row) for row in rows if row.pop(OF, None) == self._identity]
        except (KeyError, TypeError, ValueError):  # of an older version
            return []
        # One of each: whoever was killed while uniting files leaves some twice.
        traces = list({trace.key: trace for trace in found}.values())
        turns = Counter(trace.prompt_key for trace in traces)
        return [t for t in traces if turns[t.prompt_key] == num_turns.get(t.prompt_key)]

    def summarize(self, summary: Mapping[str, Any], tally: Tally) -> None:
        """Write `summary.json`, and `tally.jsonl`, which is all that comparisons need."""
        write_jsonl(self.path / "tally.jsonl", tally.to_rows())
        write_json(self.path / "summary.json", summary)

    def show_tokens(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `tokens.jsonl`: texts to look at, token by token."""
        write_jsonl(self.path / "tokens.jsonl", rows)


def state_of(path: Path) -> str:
    """Return the state of a decoding run, as `Session.state_of` words it."""
    return RunDir.state_of(path)


def read_tally(path: Path) -> Tally:
    """Return the sums of a run, from its traces if it was not finished.

    Raises:
        UserError: there is neither, or a line is damaged.
    """
    file = path / "tally.jsonl"
    if not file.exists():
        return Tally.of(read_traces(path), read_clock(path))
    rows = [row for _, row in read_jsonl(file)]
    try:
        return Tally.from_rows(rows)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error})") from None


def read_clock(path: Path) -> list[PlainSteps]:
    """Read what was timed beside the traces of a run directory; nothing, if nothing was.

    Raises:
        UserError: a line is damaged.
    """
    file = path / "clock.jsonl"
    found: list[PlainSteps] = []
    for number, row in read_jsonl(file) if file.exists() else ():
        try:
            plain = unsealed(row)
            plain.pop(OF, None)
            found.append(PlainSteps(**plain))
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}:{number}: no plain steps of this version ({error})") from None
    return found


def read_traces(path: Path) -> list[Trace]:
    """Read the traces of a run directory.

    Raises:
        UserError: there are none, or a line is not what `to_row` wrote.
    """
    file = path / "traces.jsonl"
    traces: list[Trace] = []
    for number, row in read_jsonl(file):
        try:
            plain = unsealed(row)
            plain.pop(OF, None)
            traces.append(Trace.from_row(plain))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}:{number}: not a trace of this version ({type(error).__name__}: {error})"
            ) from None
    return traces
