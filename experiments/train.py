"""Train a model or heads: `python experiments/train.py train=lm data.path=... output=...`."""

from pathlib import Path

from omegaconf import DictConfig
from specdec.experiments import training_job
from specdec.experiments.app import run
from specdec.experiments.report import report
from specdec.experiments.sweep import Sweepable, in_sweep, run_folder
from specdec.experiments.training import repeated, train


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


def main() -> None:
    """Console script `specdec-train`."""
    run(task, "train", SWEEPABLE)


if __name__ == "__main__":
    main()
