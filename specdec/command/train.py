"""Train a model or heads: `python experiments/train.py train=lm data.path=... output=...`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from specdec.command import training_sweep
from specdec.command.entry import Entry, Sweepable
from specdec.command.options import training_spec
from specdec.command.report import report
from specdec.command.sweep import run_folder, sweep_job
from specdec.core.errors import UserError
from specdec.lab.training_identity import record_of
from specdec.lab.training_run import train

OWN = ("output", "resume", "dry_run", "sweep", "tracker", "repeat")  # of a repeated training


def task(config: DictConfig) -> float | None:
    """Train into `output`; in a sweep, into a run directory, and decode with what was trained."""
    if config.repeat is not None:
        config = repeated(config)
    if sweep_job(config).is_one_of_many:
        return training_sweep.train_and_decode(config, run_folder(config, SWEEPABLE))
    if config.dry_run:
        print(f"one training, into {config.output}")
        return None
    train(training_spec(config), Path(config.output))
    return None


def repeated(config: DictConfig) -> DictConfig:
    """Return the configuration of an earlier training, for a folder of its own.

    Raises:
        UserError: `repeat` names no folder that a training has left, or what it was trained on is
            not there any more.
    """
    source = Path(config.repeat)
    file = source / "config.yaml"
    if not file.is_file():
        raise UserError(f"repeat={str(source)!r}: expected the folder of a training")
    found = OmegaConf.load(file)
    assert isinstance(found, DictConfig)
    for name in OWN:
        found[name] = config[name]
    OmegaConf.update(found, "trainer.resume", config.resume)
    OmegaConf.update(found, "trainer.tracker", config.tracker)
    named = f"repeat={str(source)!r}"
    same = "what it was trained on, unchanged"
    record_of(training_spec(found)).require_same(source, named, same)
    return found


SWEEPABLE = Sweepable(training_sweep.check, training_sweep.name, report)


ENTRY = Entry(task, SWEEPABLE)
