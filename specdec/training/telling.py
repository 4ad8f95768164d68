"""What a training says while it trains: a header, lines with the time left, evaluations."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

from specdec.core.duration import in_words
from specdec.training.objective import Objective


class Teller:
    """Speak for the main process: a bar on a terminal, and a line per logged step elsewhere.

    Used as a context manager around the steps.
    """

    def __init__(self, first: int, last: int, speaks: bool):
        self._first, self._last, self._speaks = first, last, speaks
        self._is_terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._since = time.monotonic()

    def __enter__(self) -> "Teller":
        if self._speaks and self._is_terminal:
            self._bar = tqdm(total=self._last, initial=self._first, unit="step", desc="train")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._speaks:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def stepped(self) -> None:
        """Note one step."""
        if self._bar is not None:
            self._bar.update()

    def logged(self, step: int, loss: float, rate: float, tokens_per_second: float) -> None:
        """Tell of a logged step."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.3f}")
            return
        seconds = (time.monotonic() - self._since) / max(1, step - self._first)
        left = f", {in_words(seconds * (self._last - step))} left" if step < self._last else ""
        speed = f"{tokens_per_second:,.0f} tokens/s"
        self.say(f"step {step}/{self._last}: loss {loss:.4f}, rate {rate:.2e}, {speed}{left}")

    def evaluated(self, step: int, evaluation: Mapping[str, float]) -> None:
        """Tell of an evaluation."""
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
        self.say(f"step {step}/{self._last}: {numbers}")


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
