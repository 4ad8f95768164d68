"""The verifier drafts with some of its own layers: what early exits and skipped layers share."""

from collections.abc import Sequence

from specdec.core.on_device import on_device
from specdec.core.protocols import Forward, TreePolicy
from specdec.core.room import Room
from specdec.core.tree import CandidateTree
from specdec.core.values import CandidateSource, Context, Layer, Proposal, Verdict
from specdec.lm.check_split import require_splits
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_split import LayerSplit
from specdec.lm.self_drafting import SelfDrafting
from specdec.proposer.frontier_cells import FrontierCells
from specdec.proposer.growth import LogitSource, grow, propose_where
from specdec.proposer.tree_proposer import TreeProposer


class SelfSpeculation(TreeProposer):
    """Draft with some layers of the verifier, in its own cache, in chains or trees.

    The committed text is never read for the draft's sake: its cells are the verifier's. Layers
    before the first one that is skipped read each token once, for draft and verification together;
    `finish` is the rest of the verifier's forward. q is what those layers say at that moment.

    Raises:
        UserError: the layers of this model cannot be run apart, or it differs from itself when they
            are; or the tree names a rank beyond the vocabulary.
    """

    source = CandidateSource.VERIFIER
    layers: Sequence[Layer] = ()

    def __init__(
        self,
        verifier: HFCausalLM,
        tree: TreePolicy,
        split: LayerSplit,
        temperature: float | None = None,
    ):
        super().__init__(tree, temperature, verifier.vocab_size)
        require_splits(verifier, split, "verifier.path")
        self.verifier = verifier
        self.split = split
        self._drafting = SelfDrafting(verifier, split)
        self._room = Room.of(verifier)

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Start afresh; the cache is the verifier's."""
        self._drafting.start(())

    def reset(self, contexts: Sequence[Context]) -> None:
        """Nothing to read: the verifier has read the prompts."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Grow one tree per request, all of them in one batch."""
        self._drafting.start(())
        return propose_where(self._fits, contexts, self._grow)

    def _grow(self, contexts: Sequence[Context]) -> list[Proposal]:
        self._drafting.start([context.row for context in contexts])
        cells = FrontierCells(
            [len(context.token_ids) for context in contexts], self.verifier.device
        )
        return grow(self.tree, contexts, self._read(contexts, cells), self.temperature)

    def _read(self, contexts: Sequence[Context], cells: FrontierCells) -> LogitSource:
        """Read the last committed token, then one frontier after the other."""
        roots = [[context.token_ids[-1]] for context in contexts]
        frontier = yield self._drafting.draft(on_device(roots, self.verifier.device))
        while True:
            where = cells.add(frontier)
            logits = self._drafting.draft(frontier.token_ids, frontier.parents, *where)
            frontier = yield logits

    def _fits(self, context: Context) -> bool:
        """Whether the text and a whole tree fit the verifier's context."""
        most = self._room.row(context.num_prompt_tokens)
        return len(context.token_ids) + self.max_depth <= most

    def finish(self, rows: Sequence[int], trees: Sequence[CandidateTree]) -> Forward:
        """Let the verifier read one tree per row to the end; see `TreeFinisher`."""
        return self._drafting.finish(rows, trees)

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Nothing to take back: the verifier keeps the accepted path."""
