"""One training loop for everything: a thin loop over accelerate."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from specdec.core.errors import UserError, require, require_int, require_number
from specdec.report.tracking import keep_on, log_with, start_trackers
from specdec.training.checkpoints import Checkpoints, replacing
from specdec.training.facts import write_facts
from specdec.training.metrics_log import MetricsLog
from specdec.training.objective import Batch, Objective

SCHEDULERS = ("cosine", "linear", "constant_with_warmup")


class Trainer:
    """Optimise an `Objective` with AdamW; options bear the names that transformers' users know.

    A run writes `metrics.jsonl` (one line per logged step) and `checkpoints/step-N` below the
    output folder, and at the end what the objective saves, with `training.json`; `save_best` puts
    that into `best`, too, whenever an evaluation is better than all before. Nothing has its final
    name before it is whole. `warmup_steps` below 1 is a share of `max_steps`. `group` is what a
    tracker calls the sweep that this is part of.
    """

    def __init__(
        self,
        max_steps: int,
        per_device_train_batch_size: int = 8,
        gradient_accumulation_steps: int = 1,
        learning_rate: float = 1e-3,
        lr_scheduler_type: str = "cosine",
        warmup_steps: float = 100,
        weight_decay: float = 0.1,
        adam_beta2: float = 0.95,
        max_grad_norm: float = 1.0,
        mixed_precision: str = "no",
        logging_steps: int = 50,
        eval_steps: int = 500,
        save_steps: int = 500,
        save_total_limit: int = 2,
        save_best: bool = True,
        resume_from_checkpoint: str | None = None,
        tracker: str = "jsonl",
        seed: int = 0,
        group: str | None = None,
    ):
        for name, value, minimum in (
            ("max_steps", max_steps, 1),
            ("per_device_train_batch_size", per_device_train_batch_size, 1),
            ("gradient_accumulation_steps", gradient_accumulation_steps, 1),
            ("logging_steps", logging_steps, 1),
            ("eval_steps", eval_steps, 1),
            ("save_steps", save_steps, 1),
            ("save_total_limit", save_total_limit, 1),
            ("seed", seed, 0),
        ):
            require_int(name, value, minimum)
        require_number("warmup_steps", warmup_steps, 0.0)
        whole = warmup_steps < 1 or warmup_steps == int(warmup_steps)
        require(whole, "warmup_steps", warmup_steps, "a whole number, or a share below 1")
        require_number("learning_rate", learning_rate, 0.0)
        require_number("max_grad_norm", max_grad_norm, 0.0)
        require_number("weight_decay", weight_decay, 0.0)
        require_number("adam_beta2", adam_beta2, 0.0, 0.999999)
        require(
            resume_from_checkpoint is None or isinstance(resume_from_checkpoint, str),
            "resume_from_checkpoint",
            resume_from_checkpoint,
            "a folder, latest or null",
        )
        require(isinstance(save_best, bool), "save_best", save_best, "true or false")
        require(
            mixed_precision in ("no", "bf16", "fp16"),
            "mixed_precision",
            mixed_precision,
            "no, bf16 or fp16",
        )
        require(
            lr_scheduler_type in SCHEDULERS,
            "lr_scheduler_type",
            lr_scheduler_type,
            "one of " + ", ".join(SCHEDULERS),
        )
        self.max_steps = max_steps
        self.batch_size = per_device_train_batch_size
        self.accumulation = gradient_accumulation_steps
        self.learning_rate = learning_rate
        self.lr_scheduler_type = lr_scheduler_type
        self.warmup_steps = round(warmup_steps * max_steps if warmup_steps < 1 else warmup_steps)
        self.weight_decay = weight_decay
        self.adam_beta2 = adam_beta2
        self.max_grad_norm = max_grad_norm
        self.mixed_precision = mixed_precision
        self.logging_steps = logging_steps
        self.eval_steps = eval_steps
        self.save_steps = save_steps
        self.save_total_limit = save_total_limit
        self.save_best = save_best
        self.resume_from_checkpoint = resume_from_checkpoint
        self.log_with = log_with(tracker)
        self.seed = seed
        self.group = group

    def fit(self, objective: Objective, output: Path) -> dict[str, float]:
        """Train to `max_steps`, save into `output`, and return the last evaluation.

        Raises:
            UserError: the checkpoint to resume from does not exist, or the loss stopped being a
                number (the last checkpoint is kept).
        """
        set_seed(self.seed)
        run = _Run(self, objective, output)
        hidden = None if run.accelerator.is_main_process else True
        with tqdm(
            total=self.max_steps, initial=run.step, unit="step", desc="train", disable=hidden
        ) as bar:
            while run.step < self.max_steps:
                run.advance()
                bar.update()
                if self._due(run, self.logging_steps):
                    bar.set_postfix(loss=f"{run.log_loss():.3f}")
                if self._due(run, self.eval_steps):
                    run.evaluate()
                if self._due(run, self.save_steps):
                    run.save_checkpoint()
        return run.finish()

    def _due(self, run: "_Run", interval: int) -> bool:
        """Whether this step is one of every `interval`, or the last."""
        return run.step % interval == 0 or run.step == self.max_steps


class _Run:
    """What changes while a trainer trains."""

    def __init__(self, options: Trainer, objective: Objective, output: Path):
        self.options = options
        self.objective = objective
        self.output = output
        self.accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            gradient_accumulation_steps=options.accumulation,
            log_with=options.log_with,
            project_dir=output,
        )
        optimizer = torch.optim.AdamW(
            objective.parameter_groups(options.learning_rate, options.weight_decay),
            betas=(0.9, options.adam_beta2),
            fused=True,
        )
        self.scheduler = get_scheduler(
            options.lr_scheduler_type,
            optimizer,
            num_warmup_steps=options.warmup_steps,
            num_training_steps=options.max_steps,
        )
        self.module, self.optimizer = self.accelerator.prepare(objective.module, optimizer)
        self._losses, self._trained_on = Losses(), TrainedOn()
        self.accelerator.register_for_checkpointing(self.scheduler, self._losses, self._trained_on)
        self._checkpoints = Checkpoints(output / "checkpoints", options.save_total_limit)
        self.step = self._checkpoints.resume(self.accelerator, options.resume_from_checkpoint)
        if self.step:
            self.accelerator.print(f"{output}: going on from step {self.step}")
        writes = self.accelerator.is_main_process
        self._log = MetricsLog(output / "metrics.jsonl", self.step, enabled=writes)
        start_trackers(self.accelerator, output, vars(options), "train", options.group)
        self._is_tracked = options.log_with is not None
        self.module.train()
        self._gradient_norm: Tensor | float | None = None
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since = time.perf_counter()
        self._num_tokens = 0

    def advance(self) -> None:
        """Take one optimizer step on this process's share of the step's samples."""
        accelerator, options = self.accelerator, self.options
        batches = [self._batch(micro) for micro in range(options.accumulation)]
        count = self._count(batches)
        step_loss = torch.zeros((), device=accelerator.device)
        for batch in batches:
            with accelerator.accumulate(self.module), accelerator.autocast():
                loss = self.objective.loss(self.module, batch) / count
                step_loss += loss.detach()
                # accelerate averages over micro-batches and processes; this is a sum over both.
                accelerator.backward(loss * options.accumulation * accelerator.num_processes)
                if accelerator.sync_gradients:
                    self._gradient_norm = accelerator.clip_grad_norm_(
                        self.module.parameters(), options.max_grad_norm or math.inf
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            self._num_tokens += batch.token_ids.numel() * accelerator.num_processes
        self._losses.add(step_loss)
        self._trained_on.add(count)
        self.scheduler.step()
        self.step += 1

    def _batch(self, micro: int) -> Batch:
        """Return this process's samples of one micro-batch of the step."""
        options, processes = self.options, self.accelerator.num_processes
        shard = (self.step * options.accumulation + micro) * processes
        first = (shard + self.accelerator.process_index) * options.batch_size
        batch = self.objective.batch(first, options.batch_size)
        return replace(batch, step=self.step).to(self.accelerator.device)

    def _count(self, batches: Sequence[Batch]) -> Tensor:
        """Count the tokens of a step, over all micro-batches and processes."""
        count = torch.stack([batch.num_counted for batch in batches]).sum()
        total = self.accelerator.reduce(count, "sum")
        assert isinstance(total, Tensor)
        return total.clamp(min=1)

    def log_loss(self) -> float:
        """Log the mean loss per counted token of the steps since the last time."""
        loss = self._mean_loss()
        self._write(
            loss=loss,
            learning_rate=float(self.scheduler.get_last_lr()[0]),
            tokens=self._trained_on.tokens,
            tokens_per_second=self._num_tokens / (time.perf_counter() - self._since),
        )
        self._restart_clock()
        self._losses.clear()
        return loss

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
    def evaluate(self) -> None:
        """Measure on held-out data and log it."""
        self.module.eval()
        with self.accelerator.autocast():
            evaluation = self.objective.evaluate(self.accelerator.unwrap_model(self.module))
        self.module.train()
        best = self._best_score()
        self._write(**evaluation)
        if self.options.save_best and self.objective.score(evaluation) > best:
            self._save(self.output / "best")
        self._restart_clock()

    def _best_score(self) -> float:
        return max(map(self.objective.score, self._log.evaluations), default=-math.inf)

    def _save(self, folder: Path) -> None:
        """Let the objective write what a user loads: whole, or not at all."""
        if not self.accelerator.is_main_process:
            return
        with replacing(folder) as temporary:
            module = self.accelerator.unwrap_model(self.module)
            self.objective.save(module, temporary, self._log.evaluations[-1])
            write_facts(temporary, self.step, self._trained_on.tokens)

    def save_checkpoint(self) -> None:
        """Save what a resumed run needs; weights that are no numbers never replace good ones."""
        if self._losses.values:
            self._mean_loss()
        if self.accelerator.scaler is None:  # which skips steps with infinite gradients
            self._require_finite("gradient's norm", float(self._gradient_norm or 0.0))
        self._checkpoints.save(self.accelerator, self.step)

    def finish(self) -> dict[str, float]:
        """Save what the user loads, and return the last evaluation."""
        if not self._log.evaluations:  # resumed from a run that was complete
            self.evaluate()
        self._save(self.output)
        if self._is_tracked or self.accelerator.num_processes > 1:
            keep_on(self.accelerator.end_training, str(self.options.log_with), self.output)
        return self._log.evaluations[-1]


class Losses:
    """Each step's loss since the last log; saved with a checkpoint, so that logs agree too."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Note one step, without waiting for the device."""
        self.values.append(loss)

    def mean(self) -> Tensor:
        """Average what was noted."""
        # Those of a checkpoint come back on the CPU.
        device = self.values[-1].device
        return torch.stack([value.to(device) for value in self.values]).mean()

    def clear(self) -> None:
        """Begin anew after logging."""
        self.values = []

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return what a checkpoint holds."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take up what a checkpoint held."""
        self.values = list(state["values"])


class TrainedOn:
    """The tokens that were read as targets so far (see `facts`)."""

    def __init__(self) -> None:
        self._count: Tensor | int = 0

    def add(self, count: Tensor) -> None:
        """Note one step, without waiting for the device."""
        self._count = self._count + count

    @property
    def tokens(self) -> int:
        """How many there were."""
        return int(self._count)

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint holds."""
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up what a checkpoint held."""
        self._count = state["tokens"]
