"""What a training says while it trains: a header, lines with the time left, evaluations."""

import sys
from collections.abc import Mapping

from tqdm import tqdm

from specdec.results.progress import Progress
from specdec.training.objective import Objective


class ProgressReport:
    """Speak for the main process: a bar on a terminal, and a line per logged step elsewhere.

    `progress` counts the steps, of which `last` are to be taken.
    """

    def __init__(self, progress: Progress, last: int, speaks: bool):
        self._progress, self._last, self._speaks = progress, last, speaks

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._speaks:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def stepped(self) -> None:
        """Note one step."""
        self._progress.update()

    def logged(self, step: int, loss: float, rate: float, tokens_per_second: float) -> None:
        """Tell of a logged step."""
        if self._progress.shows_bar:
            self._progress.on(f"loss={loss:.3f}")
            return
        left = f", {self._progress.time_left} left" if step < self._last else ""
        speed = f"{tokens_per_second:,.0f} tokens/s"
        self.say(f"step {step}/{self._last}: loss {loss:.4f}, rate {rate:.2e}, {speed}{left}")

    def evaluated(self, step: int, evaluation: Mapping[str, float]) -> None:
        """Tell of an evaluation."""
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
        self.say(f"step {step}/{self._last}: {numbers}")


def describe(objective: Objective, shows_sample: bool) -> None:
    """Say what of the data is left out and the like, and show the first sample if wanted."""
    for note in objective.notes():
        print(note)
    if shows_sample:
        print("the first sample, with what is not trained on in [[brackets]]:")
        print("\n".join(f"  | {line}" for line in objective.preview().splitlines()[:20]))


def header(objective: Objective, max_steps: int, samples_per_step: int) -> str:
    """Say how much there is to train, and on what."""
    trainable = sum(p.numel() for p in objective.module.parameters() if p.requires_grad)
    samples, tokens = objective.num_samples, objective.num_tokens
    passes = max_steps * samples_per_step / max(1, samples)
    return (
        f"{samples:,} samples with {tokens:,} counted tokens; {max_steps:,} steps of"
        f" {samples_per_step:,} samples, which are {passes:.3g} passes;"
        f" {trainable:,} trainable parameters"
    )
