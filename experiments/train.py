"""Train a model or heads: `python experiments/train.py train=lm data.path=... output=...`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from specdec.experiments.app import build, run

from specdec.core.errors import UserError, require


def task(config: DictConfig) -> None:
    """Build the objective and the trainer, and train."""
    for name in ("path", "held_out_path"):
        if OmegaConf.is_missing(config.data, name):
            raise UserError(f"data.{name}: missing; expected data.{name}=FILE, .txt or .jsonl")
    trainer = build(config.trainer)
    objective = build(_chosen(config))
    output = Path(config.output)
    print("the first sample, with what is not trained on in [[brackets]]:")
    print("\n".join(f"  | {line}" for line in objective.preview().splitlines()[:20]))
    evaluation = trainer.fit(objective, output)
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
    print(f"trained {trainer.max_steps} steps: {numbers}\nsaved in {output}")


def _chosen(config: DictConfig) -> DictConfig:
    """Return the node of the objective: heads or a model alone, or heads with their verifier."""
    require(isinstance(config.joint, bool), "joint", config.joint, "true or false")
    if not config.joint:
        return config.train
    cache_path = config.data.cache_path
    expected = "null with joint=true, since the states of a verifier that is tuned do not last"
    require(cache_path is None, "data.cache_path", cache_path, expected)
    return config.tuning


def main() -> None:
    """Console script `specdec-train`."""
    run(task, "train")


if __name__ == "__main__":
    main()
