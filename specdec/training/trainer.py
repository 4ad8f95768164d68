"""One training loop for everything: a thin loop over accelerate."""

import time
from collections.abc import Mapping
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

# What may differ when a training goes on: how long it is, and what is written how often.
FREE = frozenset(
    (
        *("max_steps", "num_train_epochs", "max_hours", "logging_steps", "eval_steps"),
        "eval_on_start",
        *("save_steps", "save_total_limit", "save_best", "resume", "resume_from_checkpoint"),
        *("tracker", "group"),
    )
)


class Trainer:
    """Optimise an `Objective` with AdamW; options bear the names that transformers' users know.

    A training writes `metrics.jsonl` (one line per logged step) and `checkpoints/step-N` below the
    output folder, and at the end what the objective saves, with `training.json`; `save_best` puts
    that into `best`, too, whenever an evaluation is better than all before. Nothing has its final
    name before it is whole; `TrainingDir` says what else is there. With `resume` the same training
    goes on where it was; another one is refused.

    It ends after `max_steps` steps or `num_train_epochs` passes over the data, if given;
    `max_hours` ends a session, not the training. The warm-up takes `warmup_steps` steps, or else
    the share `warmup_ratio` of all. `eval_on_start` evaluates what has learnt nothing yet. `group`
    is what a tracker calls the sweep that this is part of.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        max_steps: int = 1000,
        per_device_train_batch_size: int = 8,
        gradient_accumulation_steps: int = 1,
        num_train_epochs: float | None = None,
        max_hours: float | None = None,
        learning_rate: float = 1e-3,
        lr_scheduler_type: str = "cosine",
        lr_scheduler_kwargs: Mapping[str, Any] | None = None,
        warmup_steps: int | None = None,
        warmup_ratio: float = 0.1,
        weight_decay: float = 0.1,
        adam_beta2: float = 0.95,
        max_grad_norm: float = 1.0,
        mixed_precision: str = "no",
        logging_steps: int = 20,
        eval_steps: int = 250,
        eval_on_start: bool = True,
        save_steps: int = 250,
        save_total_limit: int = 2,
        save_best: bool = True,
        resume: bool = True,
        resume_from_checkpoint: str | None = None,
        tracker: str = "jsonl",
        seed: int = 0,
        group: str | None = None,
    ):
        self.options = {name: value for name, value in locals().items() if name != "self"}
        for name, minimum in (
            *(("max_steps", 1), ("per_device_train_batch_size", 1)),
            *(("gradient_accumulation_steps", 1), ("logging_steps", 1), ("eval_steps", 1)),
            *(("save_steps", 1), ("save_total_limit", 1), ("seed", 0)),
        ):
            require_int(name, self.options[name], minimum)
        for name in ("learning_rate", "max_grad_norm", "weight_decay"):
            require_number(name, self.options[name], 0.0)
        for name in ("num_train_epochs", "max_hours"):
            value = self.options[name]
            if value is not None:
                require_number(name, value, 0.0)
                require(value > 0, name, value, "a number > 0, or null")
        require_number("trainer.adam_beta2", adam_beta2, 0.0, 0.999999)
        for name in ("save_best", "resume", "eval_on_start"):
            value = self.options[name]
            require(isinstance(value, bool), name, value, "true or false")
        source = resume_from_checkpoint
        named = source is None or isinstance(source, str)
        require(named, "resume_from_checkpoint", source, "a folder step-N, or null")
        known = ("no", "bf16", "fp16")
        require(mixed_precision in known, "mixed_precision", mixed_precision, ", ".join(known))
        kwargs = {} if lr_scheduler_kwargs is None else lr_scheduler_kwargs
        require_schedule(lr_scheduler_type, warmup_steps, warmup_ratio, kwargs)
        self.max_steps = max_steps
        self.num_train_epochs = num_train_epochs
        self.max_hours = max_hours
        self.batch_size = per_device_train_batch_size
        self.accumulation = gradient_accumulation_steps
        self.learning_rate = learning_rate
        self.lr_scheduler_type = lr_scheduler_type
        self.lr_scheduler_kwargs = dict(kwargs)
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.weight_decay = weight_decay
        self.adam_beta2 = adam_beta2
        self.max_grad_norm = max_grad_norm
        self.mixed_precision = mixed_precision
        self.logging_steps = logging_steps
        self.eval_steps = eval_steps
        self.eval_on_start = eval_on_start
        self.save_steps = save_steps
        self.save_total_limit = save_total_limit
        self.save_best = save_best
        self.resume = resume
        self.resume_from_checkpoint = resume_from_checkpoint
        self.log_with = log_with(tracker)
        self.seed = seed
        self.group = group

    def steps(self, num_samples: int, num_processes: int) -> int:
        """Return how many steps there are over so many samples a pass."""
        if self.num_train_epochs is None:
            return self.max_steps
        samples = self.num_train_epochs * num_samples
        return max(1, round(samples / self.samples_per_step(num_processes)))

    def samples_per_step(self, num_processes: int) -> int:
        """Return how many samples an optimizer step reads, over all processes."""
        return self.batch_size * self.accumulation * num_processes

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
            gradient_accumulation_steps=self.accumulation,
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
