"""What a run keeps of its learner: an interrupted run goes on as if it had never been.

What a learner has learned depends on the texts before, in their order. So traces that an earlier
session left count only together with the state that its learner had behind just these; where they
do not agree the run begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.trace import PromptKey, Trace
from specdec.lab.arm import Arm
from specdec.lab.spec import ArmSpec
from specdec.online.learner import Distiller
from specdec.online.state import Kept, read_state, write_state
from specdec.prompts import Prompt
from specdec.results.run_dir import LEARNER, RunDir


class KeptLearner:
    """The learner of a run, and the file in its folder that it is kept in.

    Args:
        learner: as the run begins.
        folder: of the run.
        run: its identity.
        every: prompts after which the learner is kept.
    """

    def __init__(self, learner: Distiller, folder: Path, run: str, every: int):
        self._learner = learner
        self._file = folder / LEARNER
        self._run = run
        self._every = every
        self._done: list[PromptKey] = []
        self._num_kept = 0

    @classmethod
    def of(cls, spec: ArmSpec, arm: Arm, folder: Path, run: str) -> KeptLearner | None:
        """Return the learner of an arm; None: it has none."""
        learner = arm.decoder.learner
        if spec.online is None or not isinstance(learner, Distiller):
            return None
        return cls(learner, folder, run, spec.online.build().save_prompts)

    def begin(
        self, run_dir: RunDir, provenance: Mapping[str, Any], num_turns: Mapping[PromptKey, int]
    ) -> list[Trace]:
        """Begin a session, and return the traces behind which the learner goes on."""
        before = self._before() if run_dir.resumes else None
        done = () if before is None else before.prompts
        traces = run_dir.begin(provenance, {k: n for k, n in num_turns.items() if k in done})
        if before is not None and {trace.prompt_key for trace in traces} == set(done):
            self._learner.restore(before.learner)
            self._done = list(done)
            self._num_kept = len(self._done)
            return traces
        return run_dir.begin(provenance, {})

    def _before(self) -> Kept | None:
        """Read what an earlier session of this run left."""
        try:
            found = read_state(self._file)
        except UserError:  # nothing, or half of it
            return None
        return found if found.run == self._run and found.prompts else None

    def saw(self, prompts: Sequence[Prompt]) -> None:
        """Note prompts whose texts are written, and keep the learner if that is due."""
        self._done += [prompt.key for prompt in prompts]
        if len(self._done) - self._num_kept >= self._every:
            self.keep()

    def keep(self) -> None:
        """Write its state, behind the prompts that were seen."""
        write_state(self._file, self._learner.state(), self._run, self._done)
        self._num_kept = len(self._done)
