"""One training loop for everything: a thin loop over accelerate."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from specdec.core.errors import require, require_int, require_number
from specdec.core.signals import EndRequest
from specdec.results.progress import Progress
from specdec.results.tracking import log_with
from specdec.training.objective import Objective
from specdec.training.processes import require_processes
from specdec.training.record import Record
from specdec.training.schedule import require_schedule
from specdec.training.telling import ProgressReport, describe, header
from specdec.training.training_dir import TrainingDir
from specdec.training.training_run import TrainingRun

COUNTS = (
    *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"),
    *("eval_steps", "save_steps", "save_total_limit", "seed"),
)
# What may differ when a training goes on: how long it is, and what is written how often.
FREE = frozenset(
    (
        *("max_steps", "num_train_epochs", "max_hours", "logging_steps", "eval_steps"),
        "eval_on_start",
        *("save_steps", "save_total_limit", "save_best", "resume", "resume_from_checkpoint"),
        *("tracker", "group"),
    )
)


@dataclass(frozen=True)
class Trainer:
    """Optimise an `Objective` with AdamW; options bear the names that transformers' users know.

    A training writes `metrics.jsonl` (one line per logged step) and `checkpoints/step-N` below the
    output folder, and at the end what the objective saves, with `training.json`; `save_best` puts
    that into `best`, too, whenever an evaluation is better than all before. Nothing has its final
    name before it is whole; `TrainingDir` says what else is there. With `resume` the same training
    resumes; another one is refused.

    It ends after `max_steps` steps or `num_train_epochs` passes over the data, if given;
    `max_hours` ends a session, not the training. The warm-up takes `warmup_steps` steps, or else
    the share `warmup_ratio` of all. `eval_on_start` evaluates what has learnt nothing yet. `group`
    is what a tracker calls the sweep that this is part of.

    Args:
        max_steps: optimizer steps.
        per_device_train_batch_size: samples of a forward.
        gradient_accumulation_steps: forwards of a step.
        num_train_epochs: passes over the data, in place of `max_steps`.
        max_hours: of a session.
        learning_rate: the largest.
        lr_scheduler_type, lr_scheduler_kwargs: of transformers.
        warmup_steps, warmup_ratio: of the schedule.
        weight_decay: of matrices.
        adam_beta2: of AdamW.
        max_grad_norm: 0: no clipping.
        mixed_precision: no, bf16 or fp16.
        logging_steps, eval_steps, save_steps: how often, in steps.
        eval_on_start: whether there is an evaluation at step 0.
        save_total_limit: checkpoints that are kept.
        save_best: whether `best` is kept, too.
        resume: false: train anew.
        resume_from_checkpoint: a folder step-N; None: the newest.
        tracker: jsonl, wandb, tensorboard or trackio.
        seed: of what is drawn in training; of weights and order that of the data.
        group: of a tracker.

    Raises:
        UserError: an option is out of its range.
    """

    max_steps: int = 1000
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float | None = None
    max_hours: float | None = None
    learning_rate: float = 1e-3
    lr_scheduler_type: str = "cosine"
    lr_scheduler_kwargs: Mapping[str, Any] | None = None
    warmup_steps: int | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"
    logging_steps: int = 20
    eval_steps: int = 250
    eval_on_start: bool = True
    save_steps: int = 250
    save_total_limit: int = 2
    save_best: bool = True
    resume: bool = True
    resume_from_checkpoint: str | None = None
    tracker: str = "jsonl"
    seed: int = 0
    group: str | None = None

    def __post_init__(self) -> None:
        for name in COUNTS:
            require_int(name, getattr(self, name), 0 if name == "seed" else 1)
        for name in ("learning_rate", "max_grad_norm", "weight_decay"):
            require_number(name, getattr(self, name), 0.0)
        for name in ("num_train_epochs", "max_hours"):
            value = getattr(self, name)
            if value is not None:
                require_number(name, value, 0.0)
                require(value > 0, name, value, "a number > 0, or null")
        require_number("adam_beta2", self.adam_beta2, 0.0, 0.999999)
        for name in ("save_best", "resume", "eval_on_start"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, value, "true or false")
        source = self.resume_from_checkpoint
        named = source is None or isinstance(source, str)
        require(named, "resume_from_checkpoint", source, "a folder step-N, or null")
        precision, known = self.mixed_precision, ("no", "bf16", "fp16")
        require(precision in known, "mixed_precision", precision, ", ".join(known))
        kwargs = {} if self.lr_scheduler_kwargs is None else self.lr_scheduler_kwargs
        require_schedule(self.lr_scheduler_type, self.warmup_steps, self.warmup_ratio, kwargs)
        _ = self.log_with  # which refuses a tracker that cannot be

    @property
    def options(self) -> dict[str, Any]:
        """All options by their names."""
        return dict(vars(self))

    @property
    def log_with(self) -> str | None:
        """What accelerate is to log with; None: `metrics.jsonl` is enough."""
        return log_with(self.tracker)

    def steps(self, num_samples: int, num_processes: int) -> int:
        """Return how many steps there are over so many samples a pass."""
        if self.num_train_epochs is None:
            return self.max_steps
        samples = self.num_train_epochs * num_samples
        return max(1, round(samples / self.samples_per_step(num_processes)))

    def samples_per_step(self, num_processes: int) -> int:
        """Return how many samples an optimizer step reads, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * num_processes

    def fit(self, objective: Objective, output: Path) -> dict[str, float]:
        """Train into `output`, or go on there, and return the last evaluation.

        The trainer's own options identify the training; see `Record`.

        Raises:
            UserError: the folder holds another training, the checkpoint to resume from does not
                exist, or the loss stopped being a number (the last checkpoint is kept).
        """
        options = {f"trainer.{name}": v for name, v in self.options.items() if name not in FREE}
        with TrainingDir(output, Record(options, options), None, self.resume) as folder:
            return self.fit_in(folder, objective)

    def fit_in(
        self, folder: TrainingDir, objective: Objective, shows_sample: bool = False
    ) -> dict[str, float]:
        """Train into a folder that is held; see `fit`.

        A step that a signal falls into is finished and saved before the process ends.
        """
        objective.prepare()
        set_seed(self.seed)
        accelerator = Accelerator(
            mixed_precision=self.mixed_precision,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            log_with=self.log_with,
            project_dir=folder.path,
        )
        require_processes(accelerator.num_processes)
        if accelerator.is_main_process:
            describe(objective, shows_sample)
            folder.start()
        accelerator.wait_for_everyone()
        with EndRequest() as end_request:
            run = TrainingRun(self, objective, folder, accelerator)
            speaks = accelerator.is_main_process
            steps = (run.max_steps, "train", "step", run.step)
            with Progress(*steps, has_lines=False, has_bar=speaks) as progress:
                report = ProgressReport(progress, run.max_steps, speaks)
                self._introduce(run, folder, report)
                try:
                    self._train(run, report, end_request)
                except KeyboardInterrupt:
                    report.say(_interrupted(run))
                    raise
                return run.finish(report)

    def _introduce(self, run: TrainingRun, folder: TrainingDir, report: ProgressReport) -> None:
        samples = self.samples_per_step(run.accelerator.num_processes)
        report.say(header(run.objective, run.max_steps, samples))
        if run.step:
            report.say(f"{folder.path}: going on from step {run.step}")
        for note in folder.notes:
            report.say(note)

    def _train(self, run: TrainingRun, report: ProgressReport, end_request: EndRequest) -> None:
        """Take the steps that are left.

        Raises:
            KeyboardInterrupt: the process was asked to end, or the session is over; a checkpoint
                of this step is saved.
        """
        since = time.monotonic()
        is_due = self._due(run, self.eval_steps) if run.step else self.eval_on_start
        if is_due and not run.is_evaluated:
            run.evaluate(report)
        while run.step < run.max_steps:
            late = self.max_hours is not None and time.monotonic() - since >= 3600 * self.max_hours
            ends = run.advance(ends=end_request.by is not None or late)
            report.stepped()
            if self._due(run, self.logging_steps):
                run.log_loss(report)
            if ends:  # an evaluation may take longer than there is time; it is made up for
                run.save_checkpoint()
                raise end_request.ending()
            if self._due(run, self.eval_steps):
                run.evaluate(report)
            if self._due(run, self.save_steps):
                run.save_checkpoint()

    def _due(self, run: TrainingRun, interval: int) -> bool:
        """Whether this step is one of every `interval`, or the last."""
        return run.step % interval == 0 or run.step == run.max_steps


def _interrupted(run: TrainingRun) -> str:
    kept = run.saved_step
    where = f"goes on from step {kept}" if kept else "begins anew: nothing was saved yet"
    return f"interrupted at step {run.step} of {run.max_steps}; the same command {where}"
