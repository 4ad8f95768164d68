"""The folder `best`: the weights of the evaluation that scored most so far."""

import math
from collections.abc import Callable
from pathlib import Path

from specdec.training.metrics_log import LogRow, MetricsLog
from specdec.training.trained_folder import training_steps


class Best:
    """Which evaluation is the best, and whether its weights are still there.

    The scores are those of the log, which a checkpoint holds. The folder says by itself of which
    step it is, and vouches for its weights (see `write_trained`).
    """

    def __init__(self, folder: Path, score: Callable[[LogRow], float], log: MetricsLog):
        self.folder = folder
        self._score = score
        self._log = log
        self._since = 0  # evaluations of earlier steps are out of the running

    @property
    def step(self) -> int | None:
        """The step of the best evaluation, the first of several that are as good."""
        steps = [step for step in self._log.evaluations if step >= self._since]
        scores = self._log.evaluations
        return max(steps, key=lambda step: self._score(scores[step])) if steps else None

    def is_beaten_by(self, evaluation: LogRow) -> bool:
        """Whether an evaluation that is not logged yet scores more than all before it."""
        step = self.step
        least = -math.inf if step is None else self._score(self._log.evaluations[step])
        return self._score(evaluation) > least

    @property
    def there(self) -> int | None:
        """Of which step the weights in the folder are, if they are as they were saved."""
        return training_steps(self.folder)

    def forget_before(self, step: int) -> None:
        """Choose among the evaluations from a step on."""
        self._since = step

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint holds."""
        return {"since": self._since}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up what a checkpoint held."""
        self._since = state["since"]
