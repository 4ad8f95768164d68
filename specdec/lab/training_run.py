"""One training, from its configuration to the folder it leaves."""

from __future__ import annotations

from pathlib import Path

from accelerate.state import AcceleratorState
from omegaconf import DictConfig, OmegaConf

from specdec.core.errors import UserError, require
from specdec.lab.build import build
from specdec.lab.option_names import named_options
from specdec.lab.training_identity import record_of
from specdec.training.data.reading import Source
from specdec.training.data.text import FILES, require_there
from specdec.training.processes import joined
from specdec.training.trained_folder import training_steps
from specdec.training.training_dir import TrainingDir


def train(config: DictConfig, output: Path) -> None:
    """Train into a folder, or go on there, and say what came of it."""
    require_data(config)
    if _trained(config, output, group=None, speaks=True):
        print(f"trained {training_steps(output)} steps; saved in {output}")


def train_in_sweep(config: DictConfig, output: Path, sweep: str) -> None:
    """Train into a folder, or go on there; `sweep` is what a tracker calls its runs together."""
    # One job may ask for another precision than the one before it in the same process.
    AcceleratorState._reset_state()
    _trained(config, output, group=sweep, speaks=False)


def _trained(config: DictConfig, output: Path, group: str | None, speaks: bool) -> bool:
    """Train what is not trained yet; returns whether there was anything to do."""
    processes = joined()
    trainer = build(config.trainer, **({} if group is None else {"group": group}))
    steps = trainer.max_steps if trainer.num_train_epochs is None else None
    folder = TrainingDir(output, record_of(config), steps, trainer.resume, processes.is_main)
    with folder:
        if processes.agreed(folder.taken) is not None:
            if speaks:
                print(f"{output}: {folder.taken}; resume=false trains anew")
            return False
        objective = build(chosen(config))
        with named_options(config.trainer), named_options(chosen(config)):
            trainer.fit_in(folder, objective, shows_sample=speaks)
    return True


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
    for name in ("output", "resume", "dry_run", "sweep", "tracker", "repeat"):
        found[name] = config[name]
    OmegaConf.update(found, "trainer.resume", config.resume)
    OmegaConf.update(found, "trainer.tracker", config.tracker)
    named = f"repeat={str(source)!r}"
    record_of(found).require_same(source, named, "what it was trained on, unchanged")
    return found


def require_data(config: DictConfig) -> tuple[Source, Source]:
    """Refuse a training without text; what the files hold is seen when they are read.

    Returns what is trained on, and what is held out.
    """
    data = config.data
    if OmegaConf.is_missing(data, "path"):
        raise UserError(f"data.path: missing; expected data.path=FILE, {FILES}, or a data set")
    require(isinstance(data.path, str), "data.path", data.path, "a file's name")
    held_out = data.held_out_path
    named = held_out is None or isinstance(held_out, str)
    require(named, "data.held_out_path", held_out, "a file's name, or null")
    sources = build(config.reading).sources(data.path, held_out)
    for source in sources:
        require_there(source)
    return sources


def chosen(config: DictConfig) -> DictConfig:
    """Return the node of the objective: heads or a model alone, or heads with their verifier."""
    require(isinstance(config.joint, bool), "joint", config.joint, "true or false")
    if not config.joint:
        return config.train
    cache_path = config.data.cache_path
    expected = "null with joint=true, since the states of a verifier that is tuned do not last"
    require(cache_path is None, "data.cache_path", cache_path, expected)
    return config.tuning
