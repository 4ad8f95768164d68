"""The learning rate and the warm-up that fit what is trained, where no others are given.

Heads are trained as the authors of Medusa train theirs (Cai et al. 2024). A model that has learnt
already is moved gently, or it forgets more than it learns.
"""

from typing import Any

from omegaconf import DictConfig

from specdec.core.plug_ins import plug_in_name

HEADS = {"learning_rate": 1e-3, "warmup_ratio": 0.1}  # and what others bring along
FRESH = {"learning_rate": 3e-3, "warmup_ratio": 0.05}  # a model of random weights
CONTINUED = {"learning_rate": 1e-4, "warmup_ratio": 0.1}  # one with `train.init_path`
WHOLE_MODELS = ("lm", "draft_model")


def fitting(option: str, _root_: DictConfig) -> float:
    """Return the value of an option of the trainer; `${fitting:learning_rate}` in its file."""
    train: Any = _root_.train
    if plug_in_name(train._target_) not in WHOLE_MODELS:
        return HEADS[option]
    return (FRESH if train.get("init_path") is None else CONTINUED)[option]
