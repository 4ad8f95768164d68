"""What changes while a trainer trains: the step, the weights, and what is logged and saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from specdec.core.errors import UserError
from specdec.results.tracking import keep_on, start_trackers
from specdec.runtime.preparation import now
from specdec.training.best import Best
from specdec.training.checkpoints import Checkpoints, replacing
from specdec.training.counted import Losses, TrainedOn, agreed
from specdec.training.metrics_log import MetricsLog
from specdec.training.objective import Batch, Objective
from specdec.training.read_ahead import ReadAhead
from specdec.training.schedule import Schedule
from specdec.training.telling import ProgressReport
from specdec.training.tracked_name import tracked_name
from specdec.training.trained_folder import write_trained
from specdec.training.training_dir import BEST, CHECKPOINTS, LOG, TrainingDir

if TYPE_CHECKING:
    from specdec.training.trainer import Trainer


class TrainingRun:
    """One session of a training: from its last checkpoint, or from the beginning.

    Raises:
        UserError: the checkpoint is damaged or of another training.
    """

    def __init__(
        self, options: Trainer, objective: Objective, folder: TrainingDir, accelerator: Accelerator
    ):
        self.options = options
        self.objective = objective
        self.output = folder.path
        self.accelerator = accelerator
        self.max_steps = options.steps(objective.num_samples, accelerator.num_processes)
        warmup = options.warmup_steps
        optimizer = torch.optim.AdamW(
            objective.parameter_groups(options.learning_rate, options.weight_decay),
            lr=options.learning_rate,  # which some schedules relate their last rate to
            betas=(0.9, options.adam_beta2),
            fused=True,
        )
        self._schedule = Schedule(
            options.lr_scheduler_type,
            optimizer,
            round(options.warmup_ratio * self.max_steps) if warmup is None else warmup,
            self.max_steps,
            options.lr_scheduler_kwargs or {},
        )
        self.module, self.optimizer = accelerator.prepare(objective.module, optimizer)
        self._losses, self._trained_on = Losses(), TrainedOn()
        self._log = MetricsLog(self.output / LOG, enabled=accelerator.is_main_process)
        self._best = Best(self.output / BEST, objective.score, self._log)
        saved = (self._losses, self._trained_on, self._log, self._best)
        accelerator.register_for_checkpointing(*saved)
        self._checkpoints = Checkpoints(
            self.output / CHECKPOINTS, options.save_total_limit, folder.record
        )
        self._record = folder.record
        self.step = self.saved_step = self._resumed(folder)
        self._batches = ReadAhead(self._read, self.max_steps)
        self._log.begin()
        self._is_tracked = options.log_with is not None and self._starts_tracking()
        self.module.train()
        self._gradient_norm: Tensor | float | None = None
        self._rate = 0.0
        self._restart_clock()

    def _starts_tracking(self) -> bool:
        """Begin with the tracker; returns whether that was of any use."""
        trainer = {f"trainer.{name}": value for name, value in self.options.options.items()}
        options = {**trainer, **self._record.options, "trainer.max_steps": self.max_steps}
        name, group = tracked_name(self._record.options, self.output), self.options.group
        start = partial(
            start_trackers, self.accelerator, self.output, options, "train", name, group
        )
        return keep_on(start, str(self.options.log_with), self.output)

    def _resumed(self, folder: TrainingDir) -> int:
        source = self.options.resume_from_checkpoint
        if source is None and not folder.resume:
            return 0
        step = self._checkpoints.resume(self.accelerator, source)
        if not self.options.save_best or self._best.step in (None, self._best.there):
            return step
        return self._with_best_again(step, may_go_back=source is None)

    def _with_best_again(self, step: int, may_go_back: bool) -> int:
        """Make up for the best weights, which are gone; returns the step to go on from.

        They are in the checkpoint of their step, or come again on the way from one before it.
        Where there is none any more, later evaluations decide which weights are the best.
        """
        best, there, say = self._best.step, self._best.there, self.accelerator.print
        assert best is not None
        if there is not None and there > step:  # killed before there was a checkpoint of it
            say(f"{self._best.folder}: of step {there}, which is trained again")
            self._best.forget_before(step + 1)
            return step
        reason = f"{self._best.folder}: not as it was saved at step {best}"
        if best < step and may_go_back and self._checkpoints.reaches_back_to(best):
            say(f"{reason}; going back to a checkpoint that leads there")
            step = self._checkpoints.resume(self.accelerator, None, at_most=best)
        if best < step:
            say(f"{reason}; the best after step {step} takes its place")
            self._best.forget_before(step + 1)
        elif best in self._log.evaluations:
            say(f"{reason}; saved again")
            self.step = step
            self.accelerator.wait_for_everyone()  # until all have seen that it is not there
            self._save(self._best.folder, self._log.evaluations[best])
        return step

    def _restart_clock(self) -> None:
        self._since, self._num_tokens = now(), 0

    def advance(self, ends: bool = False) -> bool:
        """Take one optimizer step on this process's share of the step's samples.

        Returns whether any of the processes `ends`.
        """
        accelerator, options = self.accelerator, self.options
        self._rate = self._schedule.apply(self.optimizer, self.step)
        batches = [batch.to(accelerator.device) for batch in self._batches.of(self.step)]
        count, any_ends = agreed(accelerator, batches, ends)
        step_loss = torch.zeros((), device=accelerator.device)
        for batch in batches:
            with accelerator.accumulate(self.module), accelerator.autocast():
                loss = self.objective.loss(self.module, batch) / count
                step_loss += loss.detach()
                # accelerate averages over micro-batches and processes; this is a sum over both.
                accelerator.backward(loss * len(batches) * accelerator.num_processes)
                if accelerator.sync_gradients:
                    self._gradient_norm = accelerator.clip_grad_norm_(
                        self.module.parameters(), options.max_grad_norm or math.inf
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            self._num_tokens += batch.token_ids.numel() * accelerator.num_processes
        self._losses.add(step_loss)
        self._trained_on.add(count)
        self.step += 1
        return any_ends

    def _read(self, step: int) -> list[Batch]:
        """Return this process's samples of a step, a batch for each micro-batch."""
        processes, size = self.accelerator.num_processes, self.options.per_device_train_batch_size
        samples = self.options.samples_per_step(processes)
        first = step * samples + self.accelerator.process_index * size
        firsts = range(first, first + samples, processes * size)
        return [replace(self.objective.batch(each, size), step=step) for each in firsts]

    def log_loss(self, report: ProgressReport) -> None:
        """Log the mean loss per counted token of the steps since the last time."""
        loss = self._mean_loss()
        speed = self._num_tokens / (now() - self._since)
        self._write(
            loss=loss,
            learning_rate=self._rate,  # of this step
            tokens=self._trained_on.tokens,
            tokens_per_second=speed,
        )
        report.logged(self.step, loss, self._rate, speed)
        self._restart_clock()
        self._losses.clear()

    def _write(self, **values: float) -> None:
        """Log to `metrics.jsonl` and to the tracker."""
        self._log.write(self.step, **values)
        if self._is_tracked:
            log = partial(self.accelerator.log, values, step=self.step)
            self._is_tracked = keep_on(log, str(self.options.log_with), self.output)

    def _mean_loss(self) -> float:
        """Raise a UserError where the loss is no number, so that no such state is saved."""
        mean = self.accelerator.reduce(self._losses.mean(), "sum")  # each has its tokens' share
        assert isinstance(mean, Tensor)
        self._require_finite("loss", float(mean))
        return float(mean)

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise UserError(f"step {self.step}: the {name} is {value}; lower learning_rate")

    @torch.no_grad()
    def evaluate(self, report: ProgressReport) -> None:
        """Measure on held-out data, log it, and keep what is the best so far."""
        self.module.eval()
        with self.accelerator.autocast():
            evaluation = self.objective.evaluate(self.accelerator.unwrap_model(self.module))
        self.module.train()
        # What is logged is not measured again, so that the best must be there by then.
        if self.options.save_best and self._best.is_beaten_by(evaluation):
            self._save(self._best.folder, evaluation)
        self._write(**evaluation)
        report.evaluated(self.step, evaluation)
        self._restart_clock()

    @property
    def is_evaluated(self) -> bool:
        """Whether there is an evaluation of this step."""
        return self.step in self._log.evaluations

    def _save(self, folder: Path, evaluation: Mapping[str, float]) -> None:
        """Let the objective write what a user loads: whole, or not at all."""
        if not self.accelerator.is_main_process:
            return
        with replacing(folder) as temporary:
            module = self.accelerator.unwrap_model(self.module)
            self.objective.save(module, temporary, self._card(evaluation))
            write_trained(temporary, self.step, self._trained_on.tokens)

    def _card(self, evaluation: Mapping[str, float]) -> dict[str, str]:
        """Return what a card says of the training."""
        measured = {name: f"{value:.4f}" for name, value in evaluation.items()}
        done = {"steps": f"{self.step}", "tokens": f"{self._trained_on.tokens}"}
        return {**done, **self._record.card(), **measured}

    def save_checkpoint(self) -> None:
        """Save what a resumed run needs; weights that are no numbers never replace good ones."""
        if self._losses.values:
            self._mean_loss()
        if self.accelerator.scaler is None:  # which skips steps with infinite gradients
            self._require_finite("gradient's norm", float(self._gradient_norm or 0.0))
        self._checkpoints.save(self.accelerator, self.step)
        self.saved_step = self.step

    def finish(self, report: ProgressReport) -> dict[str, float]:
        """Save what the user loads, and return the last evaluation."""
        if not self._log.evaluations:  # resumed from a run that was complete
            self.evaluate(report)
        last = list(self._log.evaluations.values())[-1]
        self._save(self.output, last)
        if self._is_tracked or self.accelerator.num_processes > 1:
            keep_on(self.accelerator.end_training, str(self.options.log_with), self.output)
        return last
