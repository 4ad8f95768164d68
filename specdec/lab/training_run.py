"""One training, from what it is to the folder it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from specdec.lab.option_names import named_options
from specdec.lab.training_identity import record_of
from specdec.lab.training_spec import TrainingSpec
from specdec.results.processes import forget_precision
from specdec.training.objective import Objective
from specdec.training.processes import joined
from specdec.training.record import Record
from specdec.training.trained_folder import training_steps
from specdec.training.trainer import Trainer
from specdec.training.training_dir import TrainingDir


def train(spec: TrainingSpec, output: Path) -> None:
    """Train into a folder, or resume there, and say what came of it.

    Raises:
        UserError: an option is wrong, or the folder holds another training.
    """
    spec.require_sides(spec.require_data())
    if _trained(spec, output, group=None, speaks=True):
        print(f"trained {training_steps(output)} steps; saved in {output}")


def train_in_sweep(spec: TrainingSpec, output: Path, sweep: str) -> None:
    """Train into a folder, or resume there; `sweep` is what a tracker calls its runs together."""
    forget_precision()
    _trained(spec, output, group=sweep, speaks=False)


def _trained(spec: TrainingSpec, output: Path, group: str | None, speaks: bool) -> bool:
    trainer = spec.trainer.build(**({} if group is None else {"group": group}))
    names = spec.trainer.names, spec.objective.names
    return fit(trainer, spec.objective.build, record_of(spec), output, speaks, names)


def fit(
    trainer: Trainer,
    make: Callable[[], Objective],
    record: Record,
    output: Path,
    speaks: bool = True,
    names: Sequence[Mapping[str, str]] = (),
) -> bool:
    """Train what is not trained yet.

    Args:
        trainer: how it is trained.
        make: what is trained; not asked where nothing is left to do.
        record: which training this is; another one in `output` is refused.
        output: the folder.
        speaks: whether it is said what is there already, and a sample is shown.
        names: the options that arguments of the trainer and of what it trains are called by.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: an option is wrong, or the folder holds another training.
    """
    processes = joined()
    steps = trainer.max_steps if trainer.num_train_epochs is None else None
    folder = TrainingDir(output, record, steps, trainer.resume, processes.is_main)
    with folder:
        if processes.agreed(folder.taken) is not None:
            if speaks:
                print(f"{output}: {folder.taken}; resume=false trains anew")
            return False
        objective = make()
        with named_options(*names):
            trainer.fit_in(folder, objective, shows_sample=speaks)
    return True
