"""Train a model or heads: `python experiments/train.py train=lm data.path=... output=...`."""

from pathlib import Path

from omegaconf import DictConfig

from specdec.command import training_sweep as training_job
from specdec.command.entry import Entry, Sweepable
from specdec.command.report import report
from specdec.command.sweep import in_sweep, run_folder
from specdec.lab.training_run import repeated, train


def task(config: DictConfig) -> float | None:
    """Train into `output`; in a sweep, into a run directory, and decode with what was trained."""
    if config.repeat is not None:
        config = repeated(config)
    if in_sweep(config):
        return training_job.train_and_decode(config, run_folder(config, SWEEPABLE))
    if config.dry_run:
        print(f"one training, into {config.output}")
        return None
    train(config, Path(config.output))
    return None


SWEEPABLE = Sweepable(training_job.check, training_job.name, report)


ENTRY = Entry(task, SWEEPABLE)
