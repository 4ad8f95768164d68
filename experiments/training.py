"""One training, from its configuration to the folder it leaves."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from specdec.experiments.app import build

from specdec.core.errors import UserError, require
from specdec.core.jsonl import make_folder


def train(config: DictConfig, output: Path) -> None:
    """Train into a folder and say what came of it."""
    require_data(config)
    make_folder(output)  # before hours of training that could not be saved
    trainer = build(config.trainer)
    objective = build(chosen(config))
    print("the first sample, with what is not trained on in [[brackets]]:")
    print("\n".join(f"  | {line}" for line in objective.preview().splitlines()[:20]))
    evaluation = trainer.fit(objective, output)
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
    print(f"trained {trainer.max_steps} steps: {numbers}\nsaved in {output}")


def train_in_sweep(config: DictConfig, output: Path, sweep: str) -> None:
    """Train into a folder, or go on there; `sweep` is what a tracker calls its runs together."""
    from accelerate.state import AcceleratorState

    # One job may ask for another precision than the one before it in the same process.
    AcceleratorState._reset_state()
    trainer = build(config.trainer, resume_from_checkpoint="latest", group=sweep)
    trainer.fit(build(chosen(config)), output)


def require_data(config: DictConfig) -> None:
    """Refuse a training without text; what the files hold is seen when they are read."""
    from specdec.training.data.text import require_text_file

    for name in ("path", "held_out_path"):
        if OmegaConf.is_missing(config.data, name):
            raise UserError(f"data.{name}: missing; expected data.{name}=FILE, .txt or .jsonl")
        require_text_file(config.data[name], f"data.{name}")


def chosen(config: DictConfig) -> DictConfig:
    """Return the node of the objective: heads or a model alone, or heads with their verifier."""
    require(isinstance(config.joint, bool), "joint", config.joint, "true or false")
    if not config.joint:
        return config.train
    cache_path = config.data.cache_path
    expected = "null with joint=true, since the states of a verifier that is tuned do not last"
    require(cache_path is None, "data.cache_path", cache_path, expected)
    return config.tuning
