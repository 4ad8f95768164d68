"""Train an early exit of a frozen verifier, on what the verifier says with all of its layers."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from specdec.core.errors import UserError, require_share
from specdec.core.values import CandidateSource
from specdec.lm.check_split import require_parts
from specdec.lm.fingerprint import described
from specdec.lm.hf import HFCausalLM
from specdec.proposer.early_exit import EarlyExit, EarlyExitHead, exit_layer_of
from specdec.proposer.tree_fit import require_ranks
from specdec.training.acceptance import Acceptance
from specdec.training.data.sources import require_no_source
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.exit_losses import ExitLosses
from specdec.training.objective import Batch, Loss
from specdec.training.on_states import OnStates
from specdec.training.step_loss import require_token_loss


class ExitTraining(OnStates):
    """The exit behind the first layers of a verifier, which stays as it is (Kangaroo, Liu et al.
    2024, trains an adapter on shallow layers alike; LayerSkip trains the layers themselves).

    Only the exit is trained and saved. It may have a vocabulary head of its own, or the verifier's.

    Args:
        states: the data, and the verifier that reads them.
        loss: of a token.
        acceptance: how block efficiency is measured, with which tree.
        exit_layer: how many layers draft; None: half of them.
        num_layers: residual blocks of the exit.
        own_vocabulary_head: false: the verifier's.
        share: the part of a batch's positions whose loss is computed.

    Raises:
        UserError: an option is out of its range, the loss is one of steps, or the verifier's layers
            cannot be run apart.
    """

    source = CandidateSource.VERIFIER
    proposer_name = "early_exit"  # what decodes with it
    module: nn.Module  # `ExitLosses`, once prepared

    def __init__(
        self,
        states: VerifierStates,
        loss: Loss,
        acceptance: Acceptance,
        exit_layer: int | None = None,
        num_layers: int = 1,
        own_vocabulary_head: bool = False,
        share: float = 1.0,
    ):
        require_share("share", share)  # of no positions nothing would be learnt
        require_token_loss(loss, "train=exit")
        verifier = states.verifier
        require_no_source(verifier, "train=exit")
        require_parts(verifier, "verifier.path")
        if verifier.prompt_mask is not None:
            raise UserError(
                f"verifier.attention={verifier.prompt_mask!r}: train=exit reads texts from left to"
                " right; an exit of the same layers without it decodes with prompts of that kind"
            )
        require_ranks(acceptance.tree, verifier.vocab_size)
        self.states = states
        self._loss, self._acceptance, self._share = loss, acceptance, share
        self._options = (exit_layer_of(verifier, exit_layer), num_layers, own_vocabulary_head)
        with torch.device("meta"):  # without numbers: what is wrong is refused at once
            self._head({})

    def _head(self, verifier: dict[str, str]) -> EarlyExitHead:
        of = self.states.verifier
        return EarlyExitHead(of.state_size, of.vocab_size, *self._options, verifier=verifier)

    def prepare(self) -> None:
        """Read the data (see `VerifierStates`), and begin with a fresh exit; once.

        Raises:
            UserError: the data cannot be used.
        """
        if hasattr(self, "module"):
            return
        self._acceptance.prepare()
        self.states.prepare()
        verifier = self.states.verifier
        head = self._head(described(verifier))
        unembedding = verifier.model.get_output_embeddings()
        assert unembedding is not None
        assert isinstance(unembedding.weight, Tensor)
        head.start_from(unembedding.weight)
        self.module = ExitLosses(head, verifier, self._loss, self._share)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Sum of the loss over the counted tokens."""
        return module(self.states.hidden(batch), batch.token_ids, batch.counted)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure on held-out data; the same numbers as of a draft model.

        `eval_loss` is per counted token; `eval_overlap` is the mean of sum_v min(p, q) at
        temperature 1; `eval_block_efficiency` is what `Acceptance` says.
        """
        assert isinstance(module, ExitLosses)
        device = next(module.parameters()).device
        loss, overlap = module.means(self.states, device)
        verifier = self.states.placed(device)
        proposer = EarlyExit(verifier, self._acceptance.tree, head=_as_saved(module, verifier))
        draft = proposer.alone().model
        assert isinstance(draft, HFCausalLM)
        measured = self._acceptance.measure(verifier, proposer, draft, self.states.held_out)
        return {"eval_loss": loss, "eval_overlap": overlap, **measured}

    def save(self, module: nn.Module, folder: Path, card: Mapping[str, str]) -> None:
        """Write a folder that `proposer=early_exit` decodes with: bf16 safetensors."""
        assert isinstance(module, ExitLosses)
        # A copy, because training may go on in fp32 after a save.
        rounded = copy.deepcopy(module.head).to(torch.bfloat16)
        lines = {"data": self.states.data, **card}
        rounded.save_pretrained(folder, model_card_kwargs={"training": lines})


def _as_saved(module: ExitLosses, verifier: HFCausalLM) -> EarlyExitHead:
    """Return the exit in the verifier's type, as decoding loads it; training goes on in its own."""
    return copy.deepcopy(module.head).to(verifier.model.dtype).eval()
