"""Files that traces go to: one for each process of a run, with its clock beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.core.jsonl import append_row, sealed
from specdec.core.trace import PlainSteps, Trace

OF = "run"  # of a row of traces: the identity of the run that it belongs to


@dataclass(frozen=True)
class TraceFile:
    """A file that grows by one whole line for each trace, which says what run it belongs to.

    Beside it lies one for the plain steps that are timed with the traces, its `clock`.
    """

    path: Path
    identity: str

    @property
    def clock(self) -> "TraceFile":
        """Where plain steps go: `clock.jsonl`, `clock.part-1.jsonl`."""
        name = self.path.name.replace("traces", "clock", 1)
        return TraceFile(self.path.with_name(name), self.identity)

    def append(self, trace: Trace | PlainSteps) -> None:
        """Add one line.

        Raises:
            Unwritable: it could not be added; the file is as it was.
        """
        append_row(self.path, self.row(trace))

    def row(self, trace: Trace | PlainSteps) -> dict[str, Any]:
        """Return the line of a trace."""
        return sealed({**trace.to_row(), OF: self.identity})


def trace_file(run: Path, rank: int, identity: str) -> TraceFile:
    """Return where a process writes: the main one into the run's own file, others beside it."""
    name = "traces.jsonl" if rank == 0 else f"traces.part-{rank}.jsonl"
    return TraceFile(run / name, identity)
