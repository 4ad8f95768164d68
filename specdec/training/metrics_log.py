"""`metrics.jsonl`: one line per logged step of a training run."""

from pathlib import Path

from specdec.core.jsonl import append_row, make_folder, whole_rows, write_jsonl


class MetricsLog:
    """`metrics.jsonl`, cut back to the step that a run resumes from."""

    def __init__(self, path: Path, resumed_step: int, enabled: bool):
        self.evaluations: list[dict[str, float]] = []
        self.evaluated_at: set[int] = set()  # steps
        self._path = path
        self._enabled = enabled
        # What is behind the checkpoint is trained again.
        kept = [
            row for row in whole_rows(path) if row.get("step", resumed_step + 1) <= resumed_step
        ]
        for row in kept:
            self._remember(int(row["step"]), row)
        if enabled:
            make_folder(path.parent)
            write_jsonl(path, kept)

    def _remember(self, step: int, row: dict[str, float]) -> None:
        evaluation = {name: value for name, value in row.items() if name.startswith("eval_")}
        if evaluation:
            self.evaluations.append(evaluation)
            self.evaluated_at.add(step)

    def write(self, step: int, **values: float) -> None:
        """Append one line; evaluations are remembered."""
        self._remember(step, values)
        if self._enabled:
            append_row(self._path, {"step": step, **values})
