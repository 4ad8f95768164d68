"""The loss that keeps the experts of a mixture in balance while it is trained.

Without it a router soon sends all tokens to the few experts that happened to learn first.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from specdec.lm.expert_counts import ExpertCounts
from specdec.training.objective import Batch


@dataclass(frozen=True)
class Balance:
    """The auxiliary loss of the Switch Transformer (Fedus et al. 2022, equations 4 to 6).

    For E experts, of which a token takes k, it is E * sum_i f_i P_i: f_i are the experts i that
    tokens took, P_i is what the router gives expert i, both on average over the tokens of a batch.
    It is k where all experts are taken alike. Each layer has its own, and the mean over layers
    counts: transformers' function of that name joins the tokens of all layers first, so that a
    layer that wears out one expert is made up for by a layer that wears out another.

    All tokens count. Blocks of text have no padding; where there is some, it must not count.
    """

    weight: float  # of the loss, per counted token
    counts: ExpertCounts

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Balance | None":
        """Read a configuration; None: it is dense, or is not balanced by a loss."""
        counts = ExpertCounts.of(config)
        weight = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
        return None if counts is None or weight == 0 else cls(weight, counts)

    @property
    def wanted(self) -> dict[str, Any]:
        """What a forward of transformers must be asked for."""
        return {"output_router_logits": True}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Return the weighted loss, for the sum over a batch's counted tokens."""
        layers = [self.of_layer(logits.float()) for logits in output.router_logits]
        return self.weight * batch.num_counted * torch.stack(layers).mean()

    def of_layer(self, logits: Tensor) -> Tensor:  # [n, E]
        """Return E * sum_i f_i P_i of n tokens."""
        number = self.counts.num_experts
        probs = logits.softmax(dim=-1)
        taken = probs.topk(self.counts.per_token, dim=-1).indices  # [n, k]
        shares = torch.nn.functional.one_hot(taken, number).sum(dim=1).float().mean(dim=0)
        return number * (shares * probs.mean(dim=0)).sum()
