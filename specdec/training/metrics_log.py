"""`metrics.jsonl`: one line per logged step of a training run."""

import json
from pathlib import Path

from specdec.core.jsonl import whole_rows, write_jsonl


class MetricsLog:
    """`metrics.jsonl`, cut back to the step that a run resumes from."""

    def __init__(self, path: Path, resumed_step: int, enabled: bool):
        self.evaluations: list[dict[str, float]] = []
        self._path = path
        self._enabled = enabled
        # What is behind a torn line is trained again.
        kept = [row for row in whole_rows(path) if row["step"] <= resumed_step]
        for row in kept:
            self._remember(row)
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, kept)

    def _remember(self, row: dict[str, float]) -> None:
        evaluation = {name: value for name, value in row.items() if name.startswith("eval_")}
        if evaluation:
            self.evaluations.append(evaluation)

    def write(self, step: int, **values: float) -> None:
        """Append one line; evaluations are remembered."""
        self._remember(values)
        if self._enabled:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
