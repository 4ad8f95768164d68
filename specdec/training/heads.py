"""Train heads on a frozen verifier: what `medusa` and `chained` share."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from specdec.core.errors import require_number
from specdec.heads.base import Heads
from specdec.lm.hf import HFCausalLM
from specdec.lm.unembedding import slope
from specdec.proposer.heads import HeadsProposer
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.head_losses import HeadLosses
from specdec.training.objective import Batch, Loss, decay_groups
from specdec.training.position_subset import require_share


class HeadTraining:
    """K heads on the verifier's last hidden states; only the heads are trained and saved.

    `share` is the part of each batch's positions whose loss is computed: a run at a random place,
    scaled so that the expected gradient is the same.

    Raises:
        UserError: the tree that acceptance is measured with is deeper than there are heads, or the
            loss needs all positions and `share` is less than 1.
    """

    proposer: ClassVar[type[HeadsProposer]]  # who decodes with the heads

    def __init__(
        self,
        states: VerifierStates,
        heads: Heads,
        loss: Loss,
        acceptance: Acceptance,
        decay: float,
        share: float,
    ):
        require_number("train.decay", decay, 0.0, 1.0)
        require_share(share)
        if heads.vocabulary_heads:
            heads.start_from(slope(states.verifier.model))
        self.proposer(heads, states.verifier, acceptance.tree)  # refuses what cannot be measured
        self.states = states
        self._acceptance = acceptance
        module = HeadLosses(heads, states.verifier, loss, decay, share)
        self._data = states.data
        self.module: nn.Module = module

    def read(self, verifier: HFCausalLM) -> None:
        """Train on and measure with another verifier from here on, of the same shape and tokens."""
        assert isinstance(self.module, HeadLosses)
        self.module.verifier = verifier
        self.states = self.states.of(verifier)

    @property
    def num_samples(self) -> int:
        """How many samples a pass has."""
        return self.states.num_samples

    @property
    def num_tokens(self) -> int:
        """How many tokens of a pass are read as targets."""
        return self.states.num_tokens

    def notes(self) -> Sequence[str]:
        """Say what of the data is left out and the like."""
        return self.states.notes()

    def preview(self) -> str:
        """Show the first sample."""
        return self.states.preview()

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1."""
        return self.states.batch(first, count)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Sum of all heads' losses over the counted tokens."""
        return module(self.states.hidden(batch), batch.token_ids, batch.counted)

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Train all heads alike."""
        return decay_groups(self.module, learning_rate, weight_decay)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure each head's top-1 and top-5 accuracy, and block efficiency, on held-out data."""
        assert isinstance(module, HeadLosses)
        device = next(module.parameters()).device
        proposer = self.proposer(module.heads, self.states.placed(device), self._acceptance.tree)
        of = (proposer.verifier, proposer, module.heads, self.states.held_out)
        return {**self._accuracies(module), **self._acceptance.measure(*of)}

    def _accuracies(self, module: HeadLosses) -> dict[str, float]:
        device = next(module.parameters()).device
        hits = torch.zeros(module.heads.num_heads, 3)
        for batch in self.states.held_out.rows():
            batch = batch.to(device)
            hits += module.hits(self.states.hidden(batch), batch.token_ids, batch.counted).cpu()
        rates = hits[:, :2] / hits[:, 2:].clamp(min=1)
        return {
            f"eval_head{head}_top{k}": float(rates[head, column])
            for head in range(len(hits))
            for column, k in enumerate((1, 5))
        }

    def score(self, evaluation: dict[str, float]) -> float:
        """Heads are there to have their tokens accepted."""
        return evaluation["eval_block_efficiency"]

    def save(self, module: nn.Module, folder: Path, facts: Mapping[str, str]) -> None:
        """Write a folder that the proposer of the same name decodes with: bf16 safetensors."""
        assert isinstance(module, HeadLosses)
        # A copy, because training may go on in fp32 after a save.
        rounded = copy.deepcopy(module.heads).to(torch.bfloat16)
        told = {"data": self._data, **facts}
        rounded.save_pretrained(folder, model_card_kwargs={"facts": told})
