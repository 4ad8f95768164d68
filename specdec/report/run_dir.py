"""A run directory: everything a number came from, readable at any moment, even after Ctrl-C."""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.core.errors import UserError
from specdec.core.jsonl import read_jsonl, write_json, write_text
from specdec.core.trace import Trace


class RunDir:
    """Write `config.yaml`, `provenance.json`, `traces.jsonl`, `summary.json` and `status.json`.

    Used as a context manager: leaving it well writes `complete`, Ctrl-C `interrupted`, and any
    other exception `failed` with its traceback. Each trace is appended as one whole line.
    """

    def __init__(self, path: Path, config: DictConfig, provenance: Mapping[str, Any]):
        self.path = path
        self._config = config
        self._provenance = provenance

    def __enter__(self) -> "RunDir":
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(self._config, resolve=True))
        write_json(self.path / "provenance.json", self._provenance)
        (self.path / "summary.json").unlink(missing_ok=True)  # of an earlier run
        write_text(self.path / "traces.jsonl", "")
        self._status("started")
        return self

    def append(self, trace: Trace) -> None:
        """Add one line to `traces.jsonl`."""
        with (self.path / "traces.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(trace.to_row(), ensure_ascii=False) + "\n")

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_json(self.path / "summary.json", summary)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._status("complete")
        elif isinstance(error, KeyboardInterrupt):
            self._status("interrupted")
        else:
            self._status("failed", "".join(traceback.format_exception(error)))

    def _status(self, state: str, error: str | None = None) -> None:
        write_json(self.path / "status.json", {"state": state, "error": error})


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
