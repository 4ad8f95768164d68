"""The folder of a training: what it is, how far it is, and what it leaves to its user."""

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from specdec.core.errors import UserError
from specdec.core.jsonl import write_json, write_text, writing
from specdec.core.vouching import TRAINED, read_note, vouch
from specdec.results.session import COMPLETE, Session, read_status
from specdec.results.tracked_run import NAME as TRACKED
from specdec.training.record import NAME as IDENTITY
from specdec.training.record import Record
from specdec.training.trained_folder import training_steps

INSTEAD = "the same options, another output=DIR, or resume=false to train anew"
CHECKPOINTS, BEST, LOG = "checkpoints", "best", "metrics.jsonl"
# What of a session's circumstances may change a rounding.
CIRCUMSTANCES = ("versions", "source", "device", "num_threads")


class TrainingDir(Session):
    """Hold a training's folder: `config.yaml`, `identity.json`, `provenance.json`, `status.json`.

    `status.json` vouches for everything that the training leaves to be used; `checkpoints/` has
    digests of its own. With `resume` the training goes on from its last checkpoint, and is complete
    where that was its last step; without, what it left before is removed at the start. One of the
    processes that train together `writes`.

    Raises (on entering):
        UserError: the folder holds another training, or what no training left, or cannot be
            written; or another process trains there.
    """

    kind = "training"
    at_work = "being trained by another process"

    def __init__(
        self,
        path: Path,
        record: Record,
        max_steps: int | None,
        resume: bool = True,
        writes: bool = True,
    ):
        super().__init__(path, record.identity)
        self._writes = writes
        self.record = record
        self.resume = resume
        self.notes: list[str] = []  # to be said to whoever started this session
        self._max_steps = max_steps

    def __enter__(self) -> "TrainingDir":
        if not self._writes:
            return self
        if not self._is_ours():  # before a lock is left there
            self._require_empty()
        super().__enter__()
        if self.taken == self.at_work:
            raise UserError(f"output={str(self.path)!r}: {self.at_work}; expected another folder")
        return self

    def _look_around(self) -> None:
        status = read_status(self.path)
        if not self._is_ours() or not self.resume:
            return
        named = f"output={str(self.path)!r}"
        if status is None or status["identity"] != self.record.identity:
            self.record.require_same(self.path, named, INSTEAD)
        steps, wanted = training_steps(self.path), self._max_steps
        if steps is not None and wanted is not None and steps > wanted:
            expected = f"at least {steps}, another output=DIR, or resume=false to train anew"
            raise UserError(f"max_steps={wanted}: {named} is trained further; expected {expected}")
        if status is None or steps != wanted:
            return
        if status["state"] == COMPLETE and self.bears_out(self.path, status):
            self.taken = COMPLETE

    def _is_ours(self) -> bool:
        """Whether a training has begun here; of its two notes one may have been lost."""
        status = read_status(self.path) or {}
        return status.get("kind") == self.kind or read_note(self.path / IDENTITY) is not None

    def _require_empty(self) -> None:
        """Refuse to write over a model, say the verifier itself."""
        foreign = sorted(path.name for path in self.path.glob("*.safetensors"))
        foreign += [name for name in (CHECKPOINTS, "config.json") if (self.path / name).exists()]
        if foreign:
            expected = "an empty folder, output=DIR"
            named = f"output={str(self.path)!r}"
            raise UserError(f"{named}: holds {foreign[0]} of something else; expected {expected}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writes:
            super().__exit__(kind, error, trace)

    def start(self) -> None:
        """Say that a session is at work, and what it trains."""
        before = read_note(self.path / "provenance.json") or {}
        left = [] if self.resume else self._left_before()
        self._say_started()
        with writing(self.path):
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.record.write(self.path)
        if self.record.config:
            write_text(self.path / "config.yaml", self.record.config)
        if self.record.provenance:
            write_json(self.path / "provenance.json", self._provenance(before))

    def _left_before(self) -> list[Path]:
        """Return what sessions before have written, and nothing else that lies there."""
        status = read_status(self.path) or {}
        names = [CHECKPOINTS, BEST, LOG, TRAINED, IDENTITY, "provenance.json", "config.yaml"]
        names.append(TRACKED)
        vouched = [name.split("/")[0] for name in status.get("files") or ()]
        return [self.path / name for name in dict.fromkeys((*names, *vouched))
                if (self.path / name).exists()]  # fmt: skip

    def _provenance(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return this session's circumstances, and in short those of the ones before it."""
        now = json.loads(json.dumps(self.record.provenance))
        if not self.resume or not before:
            return {**now, "sessions_before": []}
        short = {name: before.get(name) for name in ("started", "argv", *CIRCUMSTANCES)}
        differing = [name for name in CIRCUMSTANCES if before.get(name) != now.get(name)]
        if differing:
            self.notes.append(
                f"resumed under other circumstances ({', '.join(differing)}): weights may differ"
                " in their rounding from those of one session"
            )
        return {**now, "sessions_before": [*before.get("sessions_before", ()), short]}

    @classmethod
    def _vouched(cls, path: Path) -> dict[str, str]:
        """Return digests of all that a user may load or cite."""
        files = [file for file in path.glob("*") if file.is_file()]
        files += [file for name in (BEST, "verifier") for file in (path / name).rglob("*")]
        names = [
            file.relative_to(path).as_posix()
            for file in files
            if file.is_file() and not file.name.startswith(".") and file.name != "status.json"
        ]
        return vouch(path, sorted(names))
