"""Train heads on a frozen verifier: what all kinds of heads share."""

import copy
from collections.abc import Mapping
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from specdec.core.errors import UserError, require, require_number, require_share
from specdec.core.values import CandidateSource
from specdec.heads.base import DraftHeads
from specdec.lm.fingerprint import described
from specdec.lm.hf import HFCausalLM
from specdec.lm.unembedding import slope
from specdec.proposer.feature_proposer import FeatureProposer
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.head_losses import HeadLosses
from specdec.training.objective import Batch, Loss
from specdec.training.on_states import OnStates
from specdec.training.position_subset import Subset, random_run

OF_VERIFIER = ("hidden_size", "vocab_size", "verifier")  # what is no option of heads


class HeadTraining(OnStates):
    """Heads on the verifier's hidden states; only the heads are trained and saved.

    A kind of heads is its proposer, which knows the module. `options` are of the module's
    constructor, as `num_heads` is; its sizes and `verifier` are those of the verifier.

    Args:
        states: the data, and the verifier's states along them.
        loss: of one token, or of a step.
        acceptance: how block efficiency is measured, with which tree.
        decay: the loss of head i (from 0) weighs `decay^i`.
        share: the part of each batch's positions whose loss is computed: a run at a random place,
            scaled so that the expected gradient is the same.

    Raises:
        UserError: an option is out of its range, the tree that acceptance is measured with is
            deeper than there are heads, or the loss needs all positions and `share` is less than 1.
    """

    proposer: ClassVar[type[FeatureProposer]]  # who decodes with the heads
    subset: ClassVar[Subset] = random_run  # how a share of the positions is chosen
    module: nn.Module  # `HeadLosses`, once prepared
    __signature__: ClassVar[Signature]

    def __init_subclass__(cls) -> None:
        """Show the module's own options, which are written there alone, in the signature."""
        if not hasattr(cls, "proposer"):  # what several kinds share
            return
        shared = [*signature(HeadTraining.__init__).parameters.values()][1:-1]
        of_module = signature(cls.proposer.kind).parameters.values()
        options = [each for each in of_module if each.name not in OF_VERIFIER]
        shown = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in options]
        cls.__signature__ = Signature([*shared, *shown])

    source = CandidateSource.HEADS

    def __init__(
        self,
        states: VerifierStates,
        loss: Loss,
        acceptance: Acceptance,
        decay: float = 0.8,
        share: float = 1.0,
        **options: Any,
    ):
        for name in options:
            self._require_known(name)
        require_number("decay", decay, 0.0, 1.0)
        require_share("share", share)  # of no positions nothing would be learnt
        self.states = states
        self._loss, self._acceptance = loss, acceptance
        self._decay, self._share = decay, share
        self._options = options
        with torch.device("meta"):  # heads without numbers: what is wrong is refused at once
            heads = self._losses(self._heads({})).heads
            self._measurable(heads, states.verifier)
        self.states = states.of_layers(heads.layers)

    def _require_known(self, name: str) -> None:
        known = self.__signature__.parameters
        if name not in known:
            kind = self.proposer.kind.__name__
            raise UserError(f"{name}: no option of {kind}; there are {', '.join(known)}")

    def prepare(self) -> None:
        """Read the data (see `VerifierStates`), and begin with fresh heads; once.

        Raises:
            UserError: the data cannot be used.
        """
        if hasattr(self, "module"):
            return
        self._acceptance.prepare()
        self.states.prepare()
        verifier = self.states.verifier
        torch.manual_seed(self.states.seed)
        heads = self._heads(described(verifier))
        self._begin(heads)
        self.module = self._losses(heads)

    def _begin(self, heads: DraftHeads) -> None:
        """Give fresh heads what they have of the verifier."""
        if heads.vocabulary_heads:
            heads.start_from(slope(self.states.verifier.model))

    def _heads(self, verifier: dict[str, str]) -> DraftHeads:
        of = self.states.verifier
        kind = self.proposer.kind
        return kind(of.state_size, of.vocab_size, **self._options, verifier=verifier)

    def _losses(self, heads: DraftHeads) -> HeadLosses:
        return HeadLosses(heads, self._loss, self._decay, self._share, type(self).subset)

    def _measurable(self, heads: DraftHeads, verifier: HFCausalLM) -> None:
        """Refuse heads that cannot be decoded with, on this verifier and with this tree."""
        self.proposer(heads, verifier, self._acceptance.tree)
        embedding = verifier.model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        expected = f"as wide as its last hidden states ({heads.hidden_size})"
        fits = not heads.reads_tokens or embedding.shape[1] == heads.hidden_size
        require(fits, "verifier.path: width of its embeddings", embedding.shape[1], expected)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Sum of all heads' losses over the counted tokens."""
        return module(self.states.verifier, *self.states.along_texts(batch))

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure each head's top-1 and top-5 accuracy, and block efficiency, on held-out data."""
        assert isinstance(module, HeadLosses)
        return self.measure(module, self.states)

    def measure(self, module: HeadLosses, states: VerifierStates) -> dict[str, float]:
        """Measure with the verifier of `states`, of which there may be another than the heads'."""
        device = next(module.parameters()).device
        proposer = self.proposer(module.heads, states.placed(device), self._acceptance.tree)
        of = (proposer.verifier, proposer, module.heads, states.held_out)
        return {**_accuracies(module, states), **self._acceptance.measure(*of)}

    def save(self, module: nn.Module, folder: Path, card: Mapping[str, str]) -> None:
        """Write a folder that the proposer of the same name decodes with: bf16 safetensors."""
        assert isinstance(module, HeadLosses)
        # A copy, because training may go on in fp32 after a save.
        rounded = copy.deepcopy(module.heads).to(torch.bfloat16)
        lines = {"data": self.states.data, **card}
        rounded.save_pretrained(folder, model_card_kwargs={"training": lines})


def _accuracies(module: HeadLosses, states: VerifierStates) -> dict[str, float]:
    device = next(module.parameters()).device
    hits = torch.zeros(module.heads.num_heads, 3)
    for batch in states.held_out.rows():
        read = states.along_texts(batch.to(device))
        hits += module.hits(states.verifier, *read).cpu()
    rates = hits[:, :2] / hits[:, 2:].clamp(min=1)
    return {
        f"eval_head{head}_top{k}": float(rates[head, column])
        for head in range(len(hits))
        for column, k in enumerate((1, 5))
    }
