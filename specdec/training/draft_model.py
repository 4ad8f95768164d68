"""Train a draft model on the verifier's distribution (DistillSpec, Zhou et al. 2023, section 4)."""

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.core.errors import require, require_int, require_share
from specdec.core.values import CandidateSource
from specdec.lm.fingerprint import card_name
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.lm.recurrent import causal_lm
from specdec.lm.vocabularies import require_same_sides, require_shared_vocabulary
from specdec.proposer.draft_model import DraftModel
from specdec.training.acceptance import Acceptance
from specdec.training.data.sources import require_no_source
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.draft_losses import DraftLosses
from specdec.training.model_folder import save_rounded
from specdec.training.objective import Batch, Loss
from specdec.training.on_states import OnStates
from specdec.training.shape import LlamaShape
from specdec.training.step_loss import require_token_loss


class DraftModelTraining(OnStates):
    """A small model with the verifier's vocabulary: the one at `init_path`, or a fresh Llama.

    `revision` and `trust_remote_code` are of `init_path`, as of `specdec.lm.load`. A fresh one has
    the verifier's context. `share` is the part of each batch's positions whose loss is computed: a
    run at a random place, scaled so that the expected gradient is the same.

    Raises:
        UserError: an option is out of range, the loss is one of steps, or the verifier has an
            encoder.
    """

    source = CandidateSource.MODEL
    module: nn.Module  # `DraftLosses`, once prepared

    def __init__(
        self,
        states: VerifierStates,
        loss: Loss,
        acceptance: Acceptance,
        init_path: str | None = None,
        hidden_size: int = 128,
        intermediate_size: int = 384,
        num_hidden_layers: int = 1,
        num_attention_heads: int = 4,
        share: float = 1.0,
        seed: int = 0,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ):
        require_share("share", share)  # of no positions nothing would be learnt
        require_token_loss(loss, "draft_model")
        require_int("seed", seed, 0)
        require_no_source(states.verifier, "train=draft_model")
        named = init_path is None or isinstance(init_path, str)
        require(named, "init_path", init_path, "a folder, a Hub id or null")
        is_read = init_path is not None or revision is None
        require(is_read, "revision", revision, "init_path=MODEL, too")
        self._shape = LlamaShape(
            hidden_size, intermediate_size, num_hidden_layers, num_attention_heads
        )
        self.states = states
        self._loss = loss
        self._acceptance = acceptance
        self._share, self._seed = share, seed
        self._init = None if init_path is None else (init_path, revision, trust_remote_code)
        self._start: str | None = None  # what a card calls it

    def prepare(self) -> None:
        """Load the draft to begin with, or make one, and read the data; once.

        Raises:
            UserError: the model at `init_path` cannot be loaded or has another vocabulary than the
                verifier, or the data cannot be used.
        """
        if hasattr(self, "module"):
            return
        self._acceptance.prepare()
        model = self._model()  # before the data, which may take hours
        self.states.prepare()
        self.module = DraftLosses(model, self.states.verifier, self._loss, self._share)

    def _model(self) -> PreTrainedModel:
        verifier = self.states.verifier
        if self._init is None:
            return _fresh(self._shape, verifier, self._seed)
        start = _loaded(verifier, *self._init)
        self._start = card_name(start)
        # A copy, because loaded weights are shared.
        return copy.deepcopy(start.model).requires_grad_(True)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Sum of the loss over the counted tokens."""
        return module(self.states.hidden(batch), batch.token_ids, batch.counted)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure on held-out data.

        `eval_loss` is per counted token; `eval_overlap` is the mean of sum_v min(p, q) at
        temperature 1, the chance that one draft token is accepted; `eval_block_efficiency` is
        what `Acceptance` says.
        """
        assert isinstance(module, DraftLosses)
        loss, overlap = module.means(self.states, module.model.device)
        verifier = self.states.placed(module.model.device)
        draft = causal_lm(module.model, verifier.tokenizer)
        proposer = DraftModel(draft, self._acceptance.tree)
        measured = self._acceptance.measure(verifier, proposer, draft, self.states.held_out)
        return {"eval_loss": loss, "eval_overlap": overlap, **measured}

    def save(self, module: nn.Module, folder: Path, card: Mapping[str, str]) -> None:
        """Write a folder that `draft.path` names."""
        assert isinstance(module, DraftLosses)
        tokenizer = self.states.verifier.tokenizer
        assert tokenizer is not None
        what = f"A draft model for {card_name(self.states.verifier)}"
        start = {} if self._start is None else {"started from": self._start}
        lines = {"data": self.states.data, **start, **card}
        save_rounded(module.model, tokenizer, folder, what, lines)


def _fresh(shape: LlamaShape, verifier: HFCausalLM, seed: int) -> PreTrainedModel:
    end_ids = sorted(verifier.end_ids)
    return shape.fresh(verifier.vocab_size, verifier.max_length, end_ids or None, seed)


def _loaded(
    verifier: HFCausalLM, init_path: str, revision: str | None, trust_remote_code: bool
) -> HFCausalLM:
    """Load a draft of the verifier's vocabulary in fp32."""
    own = {"revision": revision, "trust_remote_code": trust_remote_code}
    loaded = load(init_path, field="init_path", **own)
    require_same_sides(verifier, loaded, f"init_path={init_path!r}")
    require_shared_vocabulary(verifier, loaded, f"init_path={init_path!r}")
    loaded.require_states("init_path")
    return loaded
