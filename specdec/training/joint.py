"""Train heads together with their verifier (Medusa-2, Cai et al. 2024, 2.2.2 and 2.3.2).

The verifier becomes another model: what is lossless then is lossless with respect to that one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specdec.core.errors import UserError, require, require_int, require_number
from specdec.core.values import FINAL
from specdec.lm.fingerprint import card_name
from specdec.training.data.sources import require_no_source
from specdec.training.head_losses import HeadLosses
from specdec.training.heads import HeadTraining
from specdec.training.joint_losses import JointLosses
from specdec.training.objective import Batch, Objective, decay_groups
from specdec.training.on_states import OnStates
from specdec.training.tuning import Tuned, tuned


class Joint(OnStates):
    """Heads, and a copy of their verifier that is tuned with them and saved as a new verifier.

    L = `heads_weight` L_heads + `self_distillation` KL(original || tuned)
      + `language_modeling` CE(text, tuned), summed over the counted tokens.

    In the first `heads_warmup_steps` steps only the heads are trained; afterwards the verifier's
    learning rate is `learning_rate_scale` times theirs, without weight decay. Whatever the heads'
    loss, their teacher is the tuned verifier as it is at that step.

    Raises:
        UserError: `training` trains no heads, the verifier has an encoder, or an option is out of
            its range.
    """

    tuned: Tuned  # both there once prepared
    module: nn.Module

    def __init__(
        self,
        training: Objective,
        method: str = "lora",
        lora_rank: int = 16,
        lora_alpha: int = 16,
        lora_targets: Sequence[str] | None = None,
        learning_rate_scale: float = 0.1,
        heads_warmup_steps: int = 200,
        heads_weight: float = 0.2,
        self_distillation: float = 1.0,
        language_modeling: float = 0.0,
        seed: int = 0,
    ):
        if not isinstance(training, HeadTraining):
            name = type(training).__name__
            raise UserError(f"joint=true: {name} has no heads; expected train=medusa or chained")
        if tuple(training.states.layers) != (FINAL,):
            read = list(training.states.layers)
            raise UserError(f"joint=true: heads that read layers {read}; expected reads=[final]")
        require_tuning(
            {
                "method": method,
                "lora_rank": lora_rank,
                "lora_alpha": lora_alpha,
                "lora_targets": lora_targets,
                "learning_rate_scale": learning_rate_scale,
                "heads_warmup_steps": heads_warmup_steps,
                "heads_weight": heads_weight,
                "self_distillation": self_distillation,
                "language_modeling": language_modeling,
            }
        )
        require_int("seed", seed, 0)
        require_no_source(training.states.verifier, "joint=true")
        self._training = training
        self.states = training.states
        self._how = (method, lora_rank, lora_alpha, lora_targets, seed)
        self._heads_warmup_steps = heads_warmup_steps
        self._learning_rate_scale = learning_rate_scale
        self._weights = (heads_weight, self_distillation, language_modeling)

    def prepare(self) -> None:
        """Read the data, begin with fresh heads, and copy the verifier; once.

        Raises:
            UserError: the data cannot be used, or LoRA cannot (see `LoRA`).
        """
        if hasattr(self, "module"):
            return
        verifier = self.states.verifier
        # Before the data, which may take hours; what it draws is a stream of its own.
        self.tuned = tuned(verifier, *self._how)
        self._training.prepare()
        assert isinstance(self._training.module, HeadLosses)
        self._tuned_states = self.states.of(self.tuned.lm)
        module = JointLosses(self._training.module, verifier, self.tuned, self._weights)
        self.module = module

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Sum of the losses over the counted tokens; of the heads' alone in the warm-up."""
        self.tuned.place(batch.token_ids.device)
        heads_only = batch.step < self._heads_warmup_steps
        original = self.states.hidden(batch)
        return module(batch.token_ids, batch.counted, original, heads_only)

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Train the verifier more slowly than the heads.

        Undecayed, because it is to stay where it is: AdamW then leaves it alone in the warm-up.
        """
        module = self.module
        assert isinstance(module, JointLosses)
        verifier: dict[str, Any] = {
            "params": list(module.verifier.values()),
            "weight_decay": 0.0,
            "lr": self._learning_rate_scale * learning_rate,
        }
        return [*decay_groups(module.head_losses, learning_rate, weight_decay), verifier]

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure the heads with the tuned verifier, and how far it is from the original.

        `eval_kl_to_original` is the mean KL(original || tuned) of a counted token, in nats.
        """
        assert isinstance(module, JointLosses)
        device = next(module.parameters()).device
        self.tuned.place(device)
        measured = self._training.measure(module.head_losses, self._tuned_states)
        # As both decode: in the models' own types.
        with torch.autocast(device.type, enabled=False):
            return {**measured, "eval_kl_to_original": self._kl(module, device)}

    def _kl(self, module: JointLosses, device: torch.device) -> float:
        held_out = self._tuned_states.held_out
        total = 0.0
        for batch in held_out.rows():
            batch = batch.to(device)
            original, own = self.states.hidden(batch), self._tuned_states.hidden(batch)
            total += float(module.kl(original, own, batch.token_ids, batch.counted))
        return total / max(1, int(held_out.num_counted))

    def score(self, evaluation: dict[str, float]) -> float:
        """What the heads are worth with the tuned verifier."""
        return self._training.score(evaluation)

    def save(self, module: nn.Module, folder: Path, card: Mapping[str, str]) -> None:
        """Write the heads into `folder` and their new verifier into `folder/verifier`."""
        assert isinstance(module, JointLosses)
        heads = module.head_losses
        known = self.tuned.save(folder / "verifier")
        heads.heads.belong_to({**known, "path": "verifier"})  # wherever the folder goes
        lines = {"verifier tuned from": card_name(self.states.verifier)}
        self._training.save(heads, folder, {**lines, **card})


def require_tuning(options: Mapping[str, Any]) -> None:
    """Refuse arguments of `Joint`, by name, that are wrong whatever is tuned."""
    method, targets = options["method"], options["lora_targets"]
    require(method in ("lora", "full"), "method", method, "lora or full")
    for name, minimum in (("lora_rank", 1), ("lora_alpha", 1), ("heads_warmup_steps", 0)):
        require_int(name, options[name], minimum)
    names = targets is None or isinstance(targets, list | tuple)
    require(names, "lora_targets", targets, "a list of names or null")
    for name in ("learning_rate_scale", "heads_weight", "self_distillation", "language_modeling"):
        require_number(name, options[name], 0.0)
