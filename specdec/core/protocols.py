"""The parts that can be exchanged. A plug-in is a class with these methods and one YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from specdec.core.closed_form import ClosedForm
from specdec.core.draft_chain import DraftChain, DraftedChain
from specdec.core.randomness import RandomStream, Stream
from specdec.core.shown import Shown
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Draws, Layer, Level, Proposal, Verdict


@dataclass(frozen=True)
class Forward:
    """What a model says about the M new cells of each of its B rows."""

    logits: Tensor  # [B, M, V]
    hidden: Mapping[Layer, Tensor]  # per layer asked for: [B, M, H]
    experts: Tensor | None = None  # [B, M, L, k] int64: chosen in each sparse layer; if asked for


class CausalLM(Protocol):
    """A decoder-only language model with a KV cache of `num_rows` rows of unlike lengths.

    A cell is one cached position of one row. `extend` and `forward` append cells; `keep` rewinds
    a row. No cell that is kept is ever computed a second time.
    """

    @property
    def vocab_size(self) -> int:
        """V: the width of the logits."""
        ...

    @property
    def max_length(self) -> int:
        """The largest number of tokens a row can hold."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        ...

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows that hold up to `capacity` cells each."""
        ...

    def length(self, row: int) -> int:
        """Return the number of cells of a row."""
        ...

    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Append ordinary text to some rows; returns the hidden states of each row's new cells."""
        ...

    def forward(
        self,
        rows: Sequence[int],  # B rows
        token_ids: Tensor,  # [B, M] int64
        positions: Tensor | None = None,  # [B, M] int64
        attend: Tensor | None = None,  # [B, M, L] bool, L = longest cached row + M
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Append M cells to each row and return their logits.

        Column j of `attend` is cell j of that row: first its cached cells, then its new ones.
        By default every new cell follows the one before it: it attends to all cells of its row up
        to itself, and positions count on. Rows with fewer than M tokens are padded at the end;
        `keep` drops what the padding appended.
        """
        ...

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` cells and, of those behind, only the ones listed.

        `nodes` counts from 0 at cell `prefix`; it must ascend.
        """
        ...


@runtime_checkable
class ChainDrafter(Protocol):
    """What a language model may have besides: a whole chain is drafted by one program."""

    def draft_chain(
        self,
        rows: Sequence[int],  # B rows
        token_ids: Tensor,  # [B, M] int64
        lengths: Sequence[int],  # [B]: the tokens of each row, without the padding behind them
        chain: DraftChain,
        uniforms: Sequence[Sequence[float]],  # [B][depth], in [0, 1)
    ) -> DraftedChain | None:
        """Append tokens to rows and draft a chain behind them, by inverting q's sums at `uniforms`.

        Rows then hold all tokens but the last drafted one. None: nothing was done, since there is
        no program for it.
        """
        ...


@runtime_checkable
class WholePrompts(Protocol):
    """What a language model may have besides, whose prompts are read otherwise than other text."""

    def begin(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Read whole prompts into empty rows; of the last tokens no cells are kept.

        They are read again, as roots of the first trees. Returns the hidden states of the others.
        """
        ...


@runtime_checkable
class BoundedRows(Protocol):
    """What a verifier may have besides, whose rows are emptied when they are full."""

    def room(self, row: int) -> int:
        """Return how many tokens may be appended to a row before it is emptied, at least one."""
        ...


@runtime_checkable
class SourceReader(Protocol):
    """What a model may have besides, whose encoder reads a source and whose decoder writes a text.

    A row begins with the cells of its source, which `prefill` makes on an empty row. The text that
    follows begins with `start_id`: a prompt is the source and that token, which so is the root of
    the first tree. Rows are rewound to the source at most, or emptied.
    """

    @property
    def start_id(self) -> int:
        """The token that every text of the decoder begins with."""
        ...

    @property
    def max_source(self) -> int:
        """The most tokens of a source."""
        ...

    @property
    def max_target(self) -> int:
        """The most tokens of a decoder's text, its first one included."""
        ...


@runtime_checkable
class Rereading(Protocol):
    """What a verifier may have besides, whose rows cannot be rewound to any length."""

    def reread(self, row: int) -> int:
        """Return how many tokens of a row the last forward read once more."""
        ...


class Proposer(Protocol):
    """Any source of candidates. State is per row and begins anew with `reset`."""

    @property
    def draw(self) -> Draws:
        """How its candidates are chosen; None: it has none, and any rule will do.

        Of several ways, each proposal names its own. Which one it is follows from what is known
        before a token is drawn: to look at drawn tokens and take others would change q.
        """
        ...

    @property
    def max_depth(self) -> int:
        """The deepest draft token it ever proposes."""
        ...

    @property
    def layers(self) -> Sequence[Layer]:
        """The verifier's hidden layers it wants in `Context.features`."""
        ...

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Start afresh for up to `num_rows` requests in flight of up to `capacity` tokens each.

        Token ids and the rows of `draft_probs` range over the verifier's `vocab_size`.
        """
        ...

    def reset(self, contexts: Sequence[Context]) -> None:
        """Begin these requests: whatever their rows held is over, their prompts are committed."""
        ...

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Grow one candidate tree for each request; node 0 is its last committed token."""
        ...

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Learn what was accepted, after the commit: `token_ids` hold the emitted tokens now."""
        ...


@runtime_checkable
class OfParts(Protocol):
    """What a proposer may have besides, whose candidates come from other proposers."""

    @property
    def parts(self) -> Sequence[Proposer]:
        """These proposers."""
        ...


def leaves(proposer: Proposer) -> list[Proposer]:
    """Return the proposers that candidates come from in the end; of most proposers itself."""
    if not isinstance(proposer, OfParts):
        return [proposer]
    return [leaf for part in proposer.parts for leaf in leaves(part)]


@runtime_checkable
class Onlooker(Protocol):
    """What a part of a proposer may have besides, which learns from the candidates of others."""

    def look_on(
        self, contexts: Sequence[Context], proposals: Sequence[Proposal], starts: Sequence[int]
    ) -> None:
        """See what was proposed behind the first `starts` tokens of these texts.

        That is after the commit: `token_ids` hold what was emitted, too.
        """
        ...


@runtime_checkable
class Teachable(Protocol):
    """What a proposer may have besides, whose weights can change while it drafts."""

    def own_weights(self) -> nn.Module:
        """Draft with a copy of the weights from now on, and return the module that holds it.

        What was loaded may be shared with other proposers, and stays as it is.
        """
        ...


@runtime_checkable
class TreeFinisher(Protocol):
    """What a proposer may have besides, which drafts with layers of the verifier itself.

    By the time a step is verified the verifier has read its candidates in part, and the proposer
    knows how far.
    """

    def finish(self, rows: Sequence[int], trees: Sequence[CandidateTree]) -> Forward:
        """Let the verifier read one tree per row to the end, as its `forward` would from the start.

        The rows then hold a cell for each node, in order, padded at the end.
        """
        ...


class Learner(Protocol):
    """What makes a proposer better while it drafts, by what the verifier says of the text.

    The proposer's weights change within `begin`, `learn` and `end` alone, so never between a
    proposal and its verification: q stays what each candidate was drawn from.
    """

    @property
    def layers(self) -> Sequence[Layer]:
        """The verifier's hidden layers it wants in `Context.features`."""
        ...

    def begin(self, contexts: Sequence[Context]) -> None:
        """Begin these requests, before the proposer does; features are those of their prompts."""
        ...

    def learn(self, contexts: Sequence[Context]) -> None:
        """Take what a step committed, its tokens and their features.

        It is called after `Proposer.update`, and no request is between a proposal and its verdict.
        """
        ...

    def end(self) -> None:
        """End what still goes on beside decoding: no request is in flight or waits any more."""
        ...


class Pace(Protocol):
    """How deep candidates go at each step: chosen from what is past, never from this step's draws.

    So that a text keeps its distribution, nothing here may depend on the streams of a context.
    """

    @property
    def min_confidence(self) -> float:
        """What the draft's likeliest token needs for drafting to go on; see `TreePolicy`."""
        ...

    def open(self, max_depth: int) -> None:
        """Forget the rows; what was learnt of all requests stays. Proposals go to `max_depth`."""
        ...

    def depths(self, contexts: Sequence[Context]) -> Sequence[int]:
        """Return how deep each request may draft; 0: its proposer is not even asked."""
        ...

    def learn(
        self,
        contexts: Sequence[Context],
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        seconds: Mapping[str, float],
    ) -> None:
        """Learn what came of the step, and its `propose`, `verify` and `other` seconds.

        Seconds are those of all requests in flight together. `token_ids` hold the emitted tokens.
        """
        ...


@runtime_checkable
class Rewinding(Protocol):
    """What a proposer may have besides, whose state can go back to an earlier text.

    One that cannot is begun anew by `reset` where a text that it has followed is taken back.
    """

    def rewind(self, contexts: Sequence[Context]) -> None:
        """Forget what was read behind these texts; their last tokens may be others than were read.

        All tokens before the last one are as they were.
        """
        ...


class TreePolicy(Protocol):
    """Which candidates go into the tree, given the draft's distributions.

    A policy that the draft's numbers can make stop early has `may_stop`; growing then looks after
    each level whether there is anything left to grow, which costs a wait for the device.
    """

    @property
    def draw(self) -> Draw:
        """How siblings are chosen."""
        ...

    @property
    def max_depth(self) -> int:
        """The number of levels below the root."""
        ...

    @property
    def parents(self) -> Sequence[int]:
        """How many nodes of the level above get children, per level, at most: the first has 1."""
        ...

    @property
    def min_confidence(self) -> float:
        """No children for a node whose likeliest next token is less likely to the draft; 0: never.

        Known before a token is drawn, so that stopping there biases nothing.
        """
        ...

    @property
    def may_stop(self) -> bool:
        """Whether a level can have no candidates at all."""
        ...

    def expand(
        self, above: Level | None, depth: int, draft_probs: Tensor, streams: Sequence[RandomStream]
    ) -> Level:
        """Choose the candidates at `depth` (1 hangs from the root), without waiting for the device.

        Takes the level above, the distributions after each of the F nodes of its frontier, [B, F,
        V], and one stream for each request.
        """
        ...

    def kept(self, levels: Sequence[Level], there: Tensor) -> Tensor:  # [B, N] bool, twice
        """Choose, in the end, among the candidates of all levels that are `there`."""
        ...


@runtime_checkable
class DrawnChain(Protocol):
    """What a tree policy may have besides, so that a model may draft its chain in one go."""

    @property
    def is_drawn_chain(self) -> bool:
        """Whether `expand` does no more than draw one token after the one before it.

        Each is drawn from q as it is, by inverting its sums at its stream's next number.
        """
        ...


@runtime_checkable
class TemperedTree(Protocol):
    """What a tree policy may have besides, which ranks candidates as the text is sampled."""

    @property
    def is_tempered(self) -> bool:
        """Whether `expand` gets distributions at the text's temperature; of greedy text at 1.

        Other trees of ranks get them at 1. The option `temperature` of a draft goes before both.
        """
        ...


class VerificationRule(Protocol):
    """Which candidates survive."""

    @property
    def lossless_for(self) -> frozenset[Draw]:
        """The draws for which the emitted text has exactly the verifier's distribution."""
        ...

    @property
    def defined_for(self) -> frozenset[Draw]:
        """The draws that the rule can decide on at all: those above, and where it is lossy."""
        ...

    @property
    def needs_q(self) -> bool:
        """Whether sampled candidates must come with their distributions."""
        ...

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree. Row i of `verifier_probs` [N+1, V] is p after node i."""
        ...


@runtime_checkable
class BatchedRule(Protocol):
    """What a verification rule may have besides `verify`: a batch is decided on at once.

    A step then waits for the device once, whatever the batch. It is used where the class that
    defines it is the one that defines `verify`, or stands below it; `verification.batched.Batched`
    makes a `verify` of it.
    """

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the trees of a batch."""
        ...


@runtime_checkable
class ReplayableRule(Protocol):
    """What a verification rule may have besides, so that `replay` knows it without decoding.

    Both members speak of `verify` in the class that defines them or above it: a subclass that
    overrides `verify` declares them again.
    """

    @property
    def decided_by_text(self) -> frozenset[Draw]:
        """The draws for which exactly those candidates are accepted that the text goes on with.

        That is so where each token is the verifier's own draw, which knew nothing of the
        candidates. Then drafting along the text, with any proposer, is replay.
        """
        ...

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Return how sampled candidates are accepted, given the text; None: decode to find out."""
        ...
