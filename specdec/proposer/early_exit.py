"""The first layers of the verifier draft, and the rest of it verifies what they drafted."""

from torch import Tensor, nn

from specdec.core.errors import UserError, require, require_int
from specdec.core.protocols import TreePolicy
from specdec.heads.base import residual_blocks
from specdec.heads.on_verifier import OnVerifier
from specdec.lm.cached_as import cached_like
from specdec.lm.check_split import require_parts
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.fingerprint import require_trained_on
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_split import LayerSplit, decoder_layers
from specdec.lm.vocabularies import require_model
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.feature_proposer import load_heads
from specdec.proposer.self_speculation import SelfSpeculation
from specdec.proposer.tree_fit import require_kind


class EarlyExitHead(OnVerifier):
    """What stands between the first layers' states and the verifier's last norm: L residual blocks.

    They read states of length 1 (root mean square), and what comes out has the length of what went
    in. A fresh one changes nothing: it exits as an untrained one does (LayerSkip, Elhoushi et al.
    2024, section 4.2, has one exit for all layers; here the layers stay as they are). With
    `own_vocabulary_head` the logits are of a projection of its own.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        exit_layer: int,
        num_layers: int = 1,
        own_vocabulary_head: bool = False,
        verifier: dict[str, str] | None = None,
    ):
        super().__init__(hidden_size, vocab_size, verifier)
        require_int("exit_layer", exit_layer, 1)
        own = own_vocabulary_head
        require(isinstance(own, bool), "own_vocabulary_head", own, "true or false")
        require_int("num_layers", num_layers, 0 if own else 1)  # or nothing could be trained
        self.exit_layer = exit_layer
        self.blocks = residual_blocks(hidden_size, num_layers)
        self.vocabulary_head = _Projection(hidden_size, vocab_size, bias=False) if own else None

    @property
    def summary(self) -> str:
        """What it is, for its card."""
        return f"An exit behind the first {self.exit_layer} layers of one language model"

    def start_from(self, unembedding: Tensor) -> None:  # [V, H]
        """Copy the verifier's vocabulary head into the exit's own, if it has one."""
        if self.vocabulary_head is not None:
            self.vocabulary_head.weight.data.copy_(unembedding)

    def forward(self, hidden: Tensor) -> Tensor:  # [..., H] -> [..., H]
        """Return what the verifier's last norm reads; states keep the type that they have."""
        states = hidden.to(next(self.parameters()).dtype)
        length = states.float().square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-6)
        length = length.to(states.dtype)
        return (self.blocks(states / length) * length).to(hidden.dtype)


class _Projection(nn.Linear):
    """A vocabulary head that takes states of any type: in training the model's is another."""

    def forward(self, input: Tensor) -> Tensor:
        """Project [..., H] to [..., V]."""
        return super().forward(input.to(self.weight.dtype))


class EarlyExit(SelfSpeculation):
    """Exit early, and go on from there (Elhoushi et al. 2024, LayerSkip, section 4.3).

    The states behind the first layers go through the verifier's last norm and vocabulary head, or
    first through a trained exit. Cells and states of the first layers serve the verification.

    Args:
        verifier: whose layers draft.
        tree: how candidates grow.
        exit_layer: how many layers draft; None: those of the exit, or half of them.
        head: a trained exit; None: there is none. `EarlyExit.load` reads one from a folder.
        temperature: of sampled drafts; None: the verifier's.

    Raises:
        UserError: there are no such layers, the exit is of others, or the verifier's layers cannot
            be run apart.
    """

    kind = EarlyExitHead

    def __init__(
        self,
        verifier: HFCausalLM,
        tree: TreePolicy,
        exit_layer: int | None = None,
        head: EarlyExitHead | None = None,
        temperature: float | None = None,
    ):
        require_parts(verifier, "verifier.path")
        self.head = head
        if head is not None:
            _require_of(verifier, exit_layer, head)
            exit_layer = head.exit_layer
        self.exit_layer = exit_layer_of(verifier, exit_layer)
        super().__init__(verifier, tree, split_at(verifier, self.exit_layer, head), temperature)

    @classmethod
    def load(
        cls,
        verifier: HFCausalLM,
        tree: TreePolicy,
        path: str | None = None,
        exit_layer: int | None = None,
        temperature: float | None = None,
        force: bool = False,
        revision: str | None = None,
    ) -> "EarlyExit":
        """Load what training saved at `path`; None: exit without anything trained.

        Raises:
            UserError: no such exit, or one that was trained on another verifier and no `force`.
        """
        require_model(verifier, "verifier")
        if path is None:
            require(revision is None, "revision", revision, "path=EXIT, too")
            return cls(verifier, tree, exit_layer, None, temperature)
        require(isinstance(path, str) and bool(path), "path", path, "a folder of an exit, or null")
        require_kind(cls.kind.__name__, path)
        head = load_heads(cls.kind, Checkpoint(path, revision, field="path"))
        require_trained_on(verifier, head.verifier, f"path={path!r}", force)
        head = head.to(verifier.device, verifier.model.dtype).eval()
        return cls(verifier, tree, exit_layer, head, temperature)

    def alone(self) -> "DraftAlone":
        """Return what drafts the same as a model of its own, with a cache of its own.

        Up to rounding: the cells of the first layers depend on nothing above them.
        """
        model = cached_like(self.verifier, self.split.draft)
        return DraftAlone(model, self.tree, self.temperature)


class DraftAlone(DraftModel):
    """What an early exit drafts, where no verifier reads: with cells of its own."""

    model: HFCausalLM


def split_at(verifier: HFCausalLM, exit_layer: int, head: EarlyExitHead | None) -> LayerSplit:
    """Split a verifier behind its first layers, with an exit if there is one."""
    number = len(decoder_layers(verifier.model))
    own = None if head is None else head.vocabulary_head
    return LayerSplit(verifier.model, range(exit_layer, number), head, own)


def exit_layer_of(verifier: HFCausalLM, exit_layer: int | None) -> int:
    """Return how many layers of a verifier draft; None: half of them.

    Raises:
        UserError: there are no such layers, or all of them would.
    """
    number = len(decoder_layers(verifier.model))
    found = max(1, number // 2) if exit_layer is None else exit_layer
    fits = type(found) is int and 1 <= found < number
    require(fits, "exit_layer", found, f"a number of layers from 1 to {number - 1}, of {number}")
    return found


def _require_of(verifier: HFCausalLM, exit_layer: int | None, head: EarlyExitHead) -> None:
    """Refuse an exit of other layers, or of a model of another size."""
    same = exit_layer in (None, head.exit_layer)
    require(same, "exit_layer", exit_layer, f"{head.exit_layer}, which the exit was trained at")
    sizes, ours = (head.hidden_size, head.vocab_size), (verifier.state_size, verifier.vocab_size)
    if sizes != ours:
        raise UserError(f"path: an exit of {sizes} hidden and vocabulary size; expected {ours}")
