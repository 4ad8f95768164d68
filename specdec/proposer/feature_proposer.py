"""Proposers that draft from the verifier's hidden states: what all of them share."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from specdec.core.errors import Unfit, UserError, require
from specdec.core.protocols import TreePolicy
from specdec.core.unlike_vocabularies import fitted
from specdec.core.values import CandidateSource, Context, Layer, Proposal, Verdict
from specdec.core.vouching import require_as_trained
from specdec.heads.base import DraftHeads
from specdec.heads.on_verifier import OnVerifier
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.fingerprint import require_trained_on
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer import CachedLayer
from specdec.lm.vocabularies import require_model
from specdec.proposer.growth import LogitSource, grow, propose_where
from specdec.proposer.tree_fit import require_kind, require_levels
from specdec.proposer.tree_proposer import TreeProposer
from specdec.runtime.choice import AUTO, EAGER, require_runtime
from specdec.runtime.proven import RefusedError

R = TypeVar("R")
T = TypeVar("T", bound=OnVerifier)


class FeatureProposer(TreeProposer):
    """Heads on the verifier's hidden states, loaded, and shown the states as the text grows.

    A decoder layer of the heads' own has a cache, which holds a cell for each state that was read.
    Heads are run as `runtime` says, eager or compiled; auto: as the verifier's steps are.

    Raises:
        UserError: the tree is deeper than the heads can speak, names a rank beyond the vocabulary,
            or the verifier has no such states.
    """

    source = CandidateSource.HEADS
    kind: ClassVar[type[DraftHeads]]  # what a folder of heads is loaded as

    def __init__(
        self,
        heads: DraftHeads,
        verifier: HFCausalLM,
        tree: TreePolicy,
        temperature: float | None = None,
        runtime: str = EAGER,
    ):
        super().__init__(tree, temperature, heads.vocab_size)
        require_runtime(runtime, verifier.device)
        require_levels(tree, heads.max_depth)
        verifier.require_states("verifier.path")
        size = verifier.state_size
        expected = f"heads for states of {size} numbers, as the verifier's are"
        require(heads.hidden_size == size, "heads.hidden_size", heads.hidden_size, expected)
        known = heads.correction is None or heads.vocab_size >= verifier.vocab_size
        expected = f"{verifier.vocab_size} tokens at least, which a correction has to know"
        require(known, "heads.vocab_size", heads.vocab_size, expected)
        require_layers(verifier, heads.reads)
        self.heads = heads
        self.verifier = verifier
        self.layers: Sequence[Layer] = tuple(heads.reads)
        self._outputs = dict[int, Tensor]()  # [H], by row: of the last state that was read
        self._open_cells()
        self._may_choose = runtime == AUTO
        self._run_by(EAGER if self._may_choose else runtime)

    def _open_cells(self) -> None:
        layer = self.heads.cached_layer
        called = f"the layer of {type(self.heads).__name__}"
        self._cells = None if layer is None else CachedLayer(layer, called)

    def _run_by(self, runtime: str) -> None:
        self.runtime = runtime
        if self._cells is not None:
            self._cells.run_by(runtime, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.heads.parameters()).dtype

    @classmethod
    def load(
        cls,
        path: str | None,
        verifier: HFCausalLM,
        tree: TreePolicy,
        temperature: float | None = None,
        force: bool = False,
        revision: str | None = None,
        runtime: str = EAGER,
    ) -> Self:
        """Load what training saved; `revision` is a branch, a tag or a commit of the Hub.

        Raises:
            UserError: no such heads at `path`, or heads that were trained on another verifier and
                no `force`; a folder has no revisions.
        """
        require(isinstance(path, str) and bool(path), "path", path, "a folder of heads")
        assert path is not None
        require_kind(cls.kind.__name__, path)
        heads = load_heads(cls.kind, Checkpoint(path, revision, field="path"))
        require_model(verifier, "verifier")
        require_trained_on(verifier, heads.verifier, f"path={path!r}", force)
        heads = heads.to(verifier.device, verifier.model.dtype).eval()
        return cls(heads, verifier, tree, temperature, runtime)

    def own_weights(self) -> DraftHeads:
        """Draft with a copy of the heads from now on, and return it; auto is eager then.

        Raises:
            UserError: programs are to run them, which keep what they have made of weights.
        """
        if self.runtime != EAGER:
            raise Unfit(f"runtime={self.runtime}: programs of heads keep weights; expected eager")
        self._may_choose = False
        self.heads = copy.deepcopy(self.heads)
        self._open_cells()
        self._run_by(self.runtime)
        return self.heads

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Empty the layer's cache, if there is one; q will be `vocab_size` wide, like p."""
        self._vocab_size = vocab_size
        self._outputs = {}
        if self._may_choose and self.verifier.runtime != self.runtime:
            self._run_by(self.verifier.runtime)
        if self._cells is not None:
            self._cells.open(num_rows, capacity)

    def reset(self, contexts: Sequence[Context]) -> None:
        """Empty the rows; the prompt's states come with the first `propose`."""
        for context in contexts:
            self._outputs.pop(context.row, None)
            if self._cells is not None:
                self._cells.truncate(context.row, 0)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Read the hidden states up to the one below each request's last committed token.

        They are read where nothing is drafted, too: cells must not lack any.
        """
        ready = [context for context in contexts if self._has_state(context)]
        if ready:
            self._take_in(ready)
        return propose_where(self._has_state, contexts, self._grow)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        return grow(self.tree, contexts, self._source(contexts), self.temperature)

    @abstractmethod
    def _source(self, contexts: Sequence[Context]) -> LogitSource:
        """Compute the logits after each level of candidates, from what was read."""

    def _at_once(self, levels: Iterable[Tensor], token_ids: Tensor) -> LogitSource:
        """Yield logits [B, 1, V] that are known before any token, corrected by those before them.

        `token_ids` are the roots [B, 1].
        """
        for logits in levels:
            corrected = self.heads.corrected(logits, token_ids)  # [B, F, V], if there is one
            frontier = yield fitted(corrected, self._vocab_size)
            token_ids = frontier.token_ids

    def _inputs(self, context: Context) -> Tensor:  # [n, W]
        """Return what the layer reads of n new states, or of the last of which heads speak."""
        return self._features(context)

    def _features(self, context: Context) -> Tensor:  # [n, H of each layer]
        """Return the new states, those of all layers side by side."""
        found = [context.features[layer].to(self._dtype) for layer in self.layers]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _take_in(self, contexts: Sequence[Context]) -> None:
        states = [self._inputs(context) for context in contexts]
        rows = [context.row for context in contexts]
        if self._cells is None:
            outputs = [state[-1] for state in states]
        else:
            outputs = self._tried(partial(self._cells.append, rows, states)).unbind()
        self._outputs |= zip(rows, outputs, strict=True)

    def _last_outputs(self, contexts: Sequence[Context]) -> Tensor:  # [B, H]
        return torch.stack([self._outputs[context.row] for context in contexts])

    def _tried(self, run: Callable[[], R]) -> R:
        """Run something by programs; if they are refused, eagerly from here on."""
        try:
            return run()
        except RefusedError as reason:
            if not self._may_choose:
                raise
            print(f"runtime=auto: heads run eagerly from here on, since {reason}")
            self._may_choose = False
            self._run_by(EAGER)
            return run()

    def _has_state(self, context: Context) -> bool:
        """A prompt of one token has no hidden state yet."""
        return len(context.features[self.layers[0]]) > 0

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Nothing to take back: only true states were kept."""


def require_layers(verifier: HFCausalLM, reads: Sequence[Layer]) -> None:
    """Refuse layers that a verifier does not have, or whose states are not as wide as its last.

    Raises:
        UserError: so it is.
    """
    numbers = [each for each in reads if isinstance(each, int)]
    config = verifier.model.config.get_text_config()
    most = config.num_hidden_layers - 2  # behind the last one stands its norm
    expected = f"numbers from 0 to {most}, or final: the verifier has {most + 2} layers"
    require(all(each <= most for each in numbers), "reads", list(reads), expected)
    same = not numbers or config.hidden_size == verifier.state_size
    expected = f"final alone: layers have {config.hidden_size} numbers, of {verifier.state_size}"
    require(same, "reads", list(reads), expected)


def below(values: Tensor, parents: Tensor) -> Tensor:  # [B, F, H], [B, F'] -> [B, F', H]
    """Give each node of the next frontier what its parent had."""
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[-1]))


def load_heads(kind: type[T], there: Checkpoint) -> T:
    """Load a folder that training saved; keys must agree both ways.

    Raises:
        UserError: it holds nothing of that kind, or not those that the training left.
    """
    folder = there.source
    require_as_trained(Path(folder), there.called)
    try:
        with redirect_stdout(StringIO()):  # where the mixin says that it loads
            return kind.from_pretrained(folder, strict=True, revision=there.revision)
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{there.called}: no {kind.__name__}{there.at} ({reason})") from None
