"""`metrics.jsonl`: one line per logged step of a training run."""

from pathlib import Path

import pandas as pd

from specdec.core.jsonl import append_row, make_folder, write_jsonl
from specdec.results.flat import Frame

LogRow = dict[str, float]


class MetricsLog:
    """`metrics.jsonl`, and what is in it.

    It is saved with a checkpoint: the file is for users, and whatever becomes of it, the lines up
    to the checkpoint are there again when a run resumes.
    """

    def __init__(self, path: Path, enabled: bool):
        self.evaluations: dict[int, LogRow] = {}  # by their steps
        self._path = path
        self._enabled = enabled
        self._rows: list[LogRow] = []

    def begin(self) -> None:
        """Write what a resumed run has logged up to its checkpoint, and nothing else."""
        if self._enabled:
            make_folder(self._path.parent)
            write_jsonl(self._path, self._rows)

    def write(self, step: int, **values: float) -> None:
        """Append one line; evaluations are remembered."""
        self._remember({"step": step, **values})
        if self._enabled:
            append_row(self._path, self._rows[-1])

    def _remember(self, row: LogRow) -> None:
        self._rows.append(row)
        evaluation = {name: value for name, value in row.items() if name.startswith("eval_")}
        if evaluation:
            self.evaluations[int(row["step"])] = evaluation

    def state_dict(self) -> dict[str, list[LogRow]]:
        """Return what a checkpoint holds."""
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, list[LogRow]]) -> None:
        """Take up what a checkpoint held."""
        self._rows, self.evaluations = [], {}
        for row in state["rows"]:
            self._remember(row)


def by_step(path: Path) -> Frame:
    """Read a log: a row for each step, and a column for each number that was ever logged."""
    return pd.read_json(path, lines=True).groupby("step").first()
