"""One training loop for everything: a thin loop over accelerate."""

import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_scheduler

from specdec.core.errors import UserError, require, require_int, require_number
from specdec.core.jsonl import read_jsonl, write_jsonl
from specdec.training.objective import Objective

SCHEDULERS = ("cosine", "linear", "constant_with_warmup")


class Trainer:
    """Optimise an `Objective` with AdamW; options bear the names that transformers' users know.

    A run writes `metrics.jsonl` (one line per logged step) and `checkpoints/step-N` below the
    output folder, and at the end what the objective saves. A checkpoint appears under its final
    name only when it is whole.
    """

    def __init__(
        self,
        max_steps: int,
        per_device_train_batch_size: int = 8,
        gradient_accumulation_steps: int = 1,
        learning_rate: float = 1e-3,
        lr_scheduler_type: str = "cosine",
        warmup_steps: int = 100,
        weight_decay: float = 0.1,
        adam_beta2: float = 0.95,
        max_grad_norm: float = 1.0,
        mixed_precision: str = "no",
        logging_steps: int = 50,
        eval_steps: int = 500,
        save_steps: int = 500,
        save_total_limit: int = 2,
        resume_from_checkpoint: str | None = None,
        seed: int = 0,
    ):
        for name, value, minimum in (
            ("max_steps", max_steps, 1),
            ("per_device_train_batch_size", per_device_train_batch_size, 1),
            ("gradient_accumulation_steps", gradient_accumulation_steps, 1),
            ("warmup_steps", warmup_steps, 0),
            ("logging_steps", logging_steps, 1),
            ("eval_steps", eval_steps, 1),
            ("save_steps", save_steps, 1),
            ("save_total_limit", save_total_limit, 1),
            ("seed", seed, 0),
        ):
            require_int(name, value, minimum)
        require_number("learning_rate", learning_rate, 0.0)
        require_number("max_grad_norm", max_grad_norm, 0.0)
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
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.adam_beta2 = adam_beta2
        self.max_grad_norm = max_grad_norm
        self.mixed_precision = mixed_precision
        self.logging_steps = logging_steps
        self.eval_steps = eval_steps
        self.save_steps = save_steps
        self.save_total_limit = save_total_limit
        self.resume_from_checkpoint = resume_from_checkpoint
        self.seed = seed

    def fit(self, objective: Objective, output: Path) -> dict[str, float]:
        """Train to `max_steps`, save into `output`, and return the last evaluation.

        Raises:
            UserError: the checkpoint to resume from does not exist, or the loss stopped being a
                number (the last checkpoint is kept).
        """
        set_seed(self.seed)
        accelerator = Accelerator(
            mixed_precision=self.mixed_precision,
            gradient_accumulation_steps=self.accumulation,
        )
        optimizer = torch.optim.AdamW(
            _decay_groups(objective.module, self.weight_decay),
            lr=self.learning_rate,
            betas=(0.9, self.adam_beta2),
            fused=True,
        )
        scheduler = get_scheduler(
            self.lr_scheduler_type,
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=self.max_steps,
        )
        module, optimizer = accelerator.prepare(objective.module, optimizer)
        accelerator.register_for_checkpointing(scheduler)
        checkpoints = Checkpoints(output / "checkpoints", self.save_total_limit)
        step = checkpoints.resume(accelerator, self.resume_from_checkpoint)
        log = MetricsLog(output / "metrics.jsonl", step, enabled=accelerator.is_main_process)

        per_step = self.batch_size * accelerator.num_processes * self.accumulation
        bar = tqdm(
            total=self.max_steps,
            initial=step,
            unit="step",
            desc="train",
            disable=None if accelerator.is_main_process else True,
        )
        module.train()
        since, num_tokens, losses = time.perf_counter(), 0, []
        while step < self.max_steps:
            # 1) Accumulate gradients over this process's share of the step's samples.
            for micro in range(self.accumulation):
                shard = micro * accelerator.num_processes + accelerator.process_index
                first = step * per_step + shard * self.batch_size
                batch = objective.batch(first, self.batch_size).to(accelerator.device)
                with accelerator.accumulate(module), accelerator.autocast():
                    loss = objective.loss(module, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(module.parameters(), self.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.detach())
                num_tokens += batch.numel() * accelerator.num_processes
            scheduler.step()
            step += 1
            bar.update()

            # 2) Log, evaluate and save at their own intervals.
            if step % self.logging_steps == 0 or step == self.max_steps:
                mean = _mean(accelerator, losses)
                if not math.isfinite(mean):
                    raise UserError(f"step {step}: the loss is {mean}; lower learning_rate")
                seconds = time.perf_counter() - since
                log.write(
                    step,
                    loss=mean,
                    learning_rate=float(scheduler.get_last_lr()[0]),
                    tokens_per_second=num_tokens / seconds,
                )
                bar.set_postfix(loss=f"{mean:.3f}")
                since, num_tokens, losses = time.perf_counter(), 0, []
            if step % self.eval_steps == 0 or step == self.max_steps:
                evaluation = self._evaluate(accelerator, objective, module)
                log.write(step, **evaluation)
                since, num_tokens = time.perf_counter(), 0
            if step % self.save_steps == 0 or step == self.max_steps:
                checkpoints.save(accelerator, step)
        bar.close()

        if step == 0 or not log.last_evaluation:
            log.last_evaluation = self._evaluate(accelerator, objective, module)
        if accelerator.is_main_process:
            objective.save(accelerator.unwrap_model(module), output)
        return log.last_evaluation

    @torch.no_grad()
    def _evaluate(
        self, accelerator: Accelerator, objective: Objective, module: nn.Module
    ) -> dict[str, float]:
        module.eval()
        with accelerator.autocast():
            evaluation = objective.evaluate(accelerator.unwrap_model(module))
        module.train()
        return evaluation


def _mean(accelerator: Accelerator, losses: list[Tensor]) -> float:
    """Average over micro-batches and processes."""
    mean = accelerator.reduce(torch.stack(losses).mean(), "mean")
    assert isinstance(mean, Tensor)
    return float(mean)


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices only: biases and norm gains have no direction to shrink along."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


class MetricsLog:
    """`metrics.jsonl`, cut back to the step that a run resumes from."""

    def __init__(self, path: Path, resumed_step: int, enabled: bool):
        self.last_evaluation: dict[str, float] = {}
        self._path = path
        self._enabled = enabled
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [row for _, row in read_jsonl(path)] if path.exists() else []
            write_jsonl(path, [row for row in rows if row["step"] <= resumed_step])

    def write(self, step: int, **values: float) -> None:
        """Append one line; the last line with an evaluation is remembered."""
        if any(name.startswith("eval_") for name in values):
            self.last_evaluation = values
        if self._enabled:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


class Checkpoints:
    """Folders `step-N`: model, optimizer, schedule and random states, each whole or absent."""

    def __init__(self, folder: Path, limit: int):
        self.folder = folder
        self._limit = limit

    def saved(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        found = [p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def resume(self, accelerator: Accelerator, source: str | None) -> int:
        """Load `source` (a folder, "latest" or None) and return the step it was saved at."""
        if source is None:
            return 0
        if source == "latest":
            saved = self.saved()
            if not saved:
                return 0
            path = saved[-1]
        else:
            path = Path(source)
        if not path.is_dir():
            raise UserError(f"resume_from_checkpoint={source!r}: no such folder")
        accelerator.load_state(str(path))
        return int(path.name.removeprefix("step-"))

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Save under a temporary name, rename, and drop the oldest beyond the limit."""
        target = self.folder / f"step-{step}"
        temporary = self.folder / f".step-{step}"
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
            for old in self.saved()[: -self._limit]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()
