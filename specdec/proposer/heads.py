"""Heads on the verifier's hidden states draft: what all kinds of heads share."""

import copy
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from specdec.core.draft_chain import DraftChain, DraftedChain
from specdec.core.errors import Unfit, UserError, require
from specdec.core.on_device import on_device
from specdec.core.protocols import TreePolicy
from specdec.core.unlike_vocabularies import fitted
from specdec.core.values import CandidateSource, Context, Layer, Proposal, Verdict
from specdec.core.vouching import require_as_trained
from specdec.heads.base import Heads
from specdec.heads.on_verifier import OnVerifier
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.fingerprint import require_trained_on
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer import CachedLayer
from specdec.lm.vocabularies import require_model
from specdec.proposer.growth import LogitSource, grow, propose_where
from specdec.proposer.head_programs import ChainOfHeads, all_levels, one_level
from specdec.proposer.tree_fit import require_kind, require_levels
from specdec.proposer.tree_proposer import TreeProposer, chains
from specdec.runtime.choice import AUTO, EAGER, function_of, require_runtime
from specdec.runtime.program import Expected, Function
from specdec.runtime.proven import RefusedError

R = TypeVar("R")
T = TypeVar("T", bound=OnVerifier)


class HeadsProposer(TreeProposer):
    """Grow trees level by level, one head a level, from the state below the last committed token.

    Head i speaks about the tokens i + 1 below the root. Sampled drafts (`tree=chain`) are drawn
    like the verifier's text at `temperature`, by default the verifier's.

    Their levels are run as `runtime` says, eager or compiled; auto: as the verifier's steps are.

    Raises:
        UserError: the tree is deeper than there are heads, or names a rank beyond the vocabulary.
    """

    source = CandidateSource.HEADS
    layers: Sequence[Layer] = ("final",)
    kind: ClassVar[type[Heads]]  # what a folder of heads is loaded as

    def __init__(
        self,
        heads: Heads,
        verifier: HFCausalLM,
        tree: TreePolicy,
        temperature: float | None = None,
        runtime: str = EAGER,
    ):
        super().__init__(tree, temperature, heads.vocab_size)
        require_runtime(runtime, verifier.device)
        require_levels(tree, heads.num_heads)
        verifier.require_states("verifier.path")
        _require_sizes(heads, verifier)
        self.heads = heads
        self.verifier = verifier
        self._prefix = None if heads.prefix is None else CachedLayer(heads.prefix)
        self._may_choose = runtime == AUTO
        self._run_by(EAGER if self._may_choose else runtime)

    def _run_by(self, runtime: str) -> None:
        self.runtime = runtime
        self._levels = self._levels_by(runtime)
        self._chains = dict[DraftChain, Function]()
        if self._prefix is not None:
            self._prefix.run_by(runtime, next(self.heads.parameters()).dtype)

    def _levels_by(self, runtime: str) -> list[Function]:
        """Return what runs the first heads, one for each; one for all if they read no tokens."""
        heads, depth = self.heads, self.tree.max_depth
        if not heads.reads_tokens:
            return [self._function(runtime, all_levels(heads, depth), "the heads")]
        return [
            self._function(runtime, one_level(heads, head), f"head {head}") for head in range(depth)
        ]

    def _chain_by(self, chain: DraftChain) -> Function:
        """Return what drafts such chains whole."""
        if chain not in self._chains:
            of_heads = ChainOfHeads(self.heads, self.verifier, chain)
            self._chains[chain] = self._function(
                self.runtime, of_heads.drafted, "the chain", of_heads.expected
            )
        return self._chains[chain]

    def _function(
        self, runtime: str, function: Function, called: str, expected: Expected | None = None
    ) -> Function:
        dtype, kind = next(self.heads.parameters()).dtype, type(self.heads).__name__
        return function_of(runtime, function, dtype, f"{called} of {kind}", expected=expected)

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

    def own_weights(self) -> Heads:
        """Draft with a copy of the heads from now on, and return it; auto is eager then.

        Raises:
            UserError: programs are to run them, which keep what they have made of weights.
        """
        if self.runtime != EAGER:
            raise Unfit(f"runtime={self.runtime}: programs of heads keep weights; expected eager")
        self._may_choose = False
        self.heads = copy.deepcopy(self.heads)
        if self.heads.prefix is not None:
            self._prefix = CachedLayer(self.heads.prefix)
        self._run_by(self.runtime)
        return self.heads

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Empty the prefix layer's cache, if there is one; q will be `vocab_size` wide, like p."""
        self._vocab_size = vocab_size
        if self._may_choose and self.verifier.runtime != self.runtime:
            self._run_by(self.verifier.runtime)
        if self._prefix is not None:
            self._prefix.open(num_rows, capacity)

    def reset(self, contexts: Sequence[Context]) -> None:
        """Empty the rows; the prompt's states come with the first `propose`."""
        if self._prefix is not None:
            for context in contexts:
                self._prefix.reset(context.row)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Read the hidden state below the last committed token of each request."""
        return propose_where(_has_state, contexts, self._grow)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        whole = self._whole_chain(contexts)
        if whole is None:
            return grow(self.tree, contexts, self._read(contexts), self.temperature)
        hidden = self._hidden(contexts)[:, None]
        roots = on_device([[context.token_ids[-1]] for context in contexts], hidden.device)
        uniforms = on_device(whole.uniforms, hidden.device, torch.float64)
        draft = partial(self._draft, whole.chain, hidden, roots, uniforms)
        _, probs, token_ids = self._tried(draft)
        return chains(DraftedChain(token_ids, probs), contexts)

    def _draft(self, chain: DraftChain, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._chain_by(chain)(*inputs)

    def _read(self, contexts: Sequence[Context]) -> LogitSource:
        """Compute one head's distributions after each of the F nodes of the level above it."""
        hidden = self._hidden(contexts)[:, None]  # [B, 1, H]
        roots = on_device([[context.token_ids[-1]] for context in contexts], hidden.device)
        read = self._along if self.heads.reads_tokens else self._at_once
        return read(hidden, roots)

    def _at_once(self, hidden: Tensor, token_ids: Tensor) -> LogitSource:
        """Ask all heads before any token is known, since they read none; a correction may."""
        for found in self._tried(partial(self._level, 0, hidden)):  # [B, 1, V], or a state
            logits = found if self.heads.vocabulary_heads else self.verifier.unembed(found)
            logits = self.heads.corrected(logits, token_ids)  # [B, F, V], if there is one
            frontier = yield fitted(logits, self._vocab_size)
            token_ids = frontier.token_ids

    def _along(self, hidden: Tensor, roots: Tensor) -> LogitSource:
        """Ask head by head: each reads the tokens that were chosen by those before it."""
        state = hidden.view(hidden.shape)  # a tensor of its own: programs tell inputs apart
        path = roots[..., None]  # [B, F, i + 1]: from the root down
        for head in range(len(self._levels)):
            embeddings = self.verifier.embed(path).to(hidden.dtype)
            inputs = hidden, embeddings, state
            state, *own = self._tried(partial(self._level, head, *inputs))  # [B, F, H], and logits
            logits = own[0] if own else self.verifier.unembed(state)
            logits = self.heads.corrected(logits, path[..., -1])
            frontier = yield fitted(logits, self._vocab_size)
            path = _below(path, frontier.parents)
            path = torch.cat([path, frontier.token_ids[..., None]], dim=-1)
            state = _below(state, frontier.parents)
            hidden = hidden[:, :1].expand(-1, path.shape[1], -1).contiguous()

    def _level(self, head: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._levels[head](*inputs)

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

    def _hidden(self, contexts: Sequence[Context]) -> Tensor:  # [B, H]
        weight = next(self.heads.parameters())
        states = [context.features["final"].to(weight.dtype) for context in contexts]
        if self._prefix is None:
            return torch.stack([state[-1] for state in states])
        rows = [context.row for context in contexts]
        return self._tried(partial(self._prefix.append, rows, states))

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Nothing to take back: only true states were read."""


def _require_sizes(heads: Heads, verifier: HFCausalLM) -> None:
    """Refuse heads that the verifier's states or tokens are too wide for."""
    size = verifier.state_size
    expected = f"heads for states of {size} numbers, as the verifier's are"
    require(heads.hidden_size == size, "heads.hidden_size", heads.hidden_size, expected)
    known = heads.correction is None or heads.vocab_size >= verifier.vocab_size
    expected = f"{verifier.vocab_size} tokens at least, which a correction has to know"
    require(known, "heads.vocab_size", heads.vocab_size, expected)


def _below(values: Tensor, parents: Tensor) -> Tensor:  # [B, F, H], [B, F'] -> [B, F', H]
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


def _has_state(context: Context) -> bool:
    """A prompt of one token has no hidden state yet."""
    return len(context.features["final"]) > 0
