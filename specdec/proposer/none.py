"""No candidates: the autoregressive baseline, in the same loop as everything else."""

from collections.abc import Sequence

from specdec.core.tree import CandidateTree
from specdec.core.values import CandidateSource, Context, Layer, Proposal, Verdict


class NoProposer:
    """Every tree is its root, so every step emits the one token that the verifier draws."""

    source = CandidateSource.NOTHING
    draw = None
    max_depth = 0
    layers: Sequence[Layer] = ()

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Nothing to prepare."""

    def reset(self, contexts: Sequence[Context]) -> None:
        """Nothing to forget."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Propose nothing."""
        chains = [CandidateTree.chain(context.token_ids[-1], ()) for context in contexts]
        return [Proposal(chain, num_draft_calls=0) for chain in chains]

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn."""
