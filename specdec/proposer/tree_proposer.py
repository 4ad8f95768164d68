"""What proposers share whose candidates a tree chooses among a draft's distributions."""

from collections.abc import Sequence
from typing import NamedTuple

from specdec.core.draft_chain import DraftChain, DraftedChain
from specdec.core.protocols import DrawnChain, TreePolicy
from specdec.core.randomness import is_plain
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Proposal
from specdec.proposer.tree_fit import require_growable, require_ranks


class WholeChain(NamedTuple):
    """A chain for each of B requests that can be drafted without a look at its tokens."""

    chain: DraftChain
    uniforms: list[list[float]]  # [B][depth]: what each token is drawn by


class TreeProposer:
    """The tree, and the temperature of sampled drafts; None is the verifier's.

    Raises:
        UserError: there is no such tree or temperature, or the tree names a rank beyond the
            draft's vocabulary.
    """

    def __init__(self, tree: TreePolicy, temperature: float | None, vocab_size: int):
        require_growable(tree, temperature)
        require_ranks(tree, vocab_size)
        self.tree = tree
        self.temperature = temperature
        self._vocab_size = vocab_size  # the draft's, until `open` says how wide q is to be
        self._warping: tuple[Sampling, Sampling] | None = None

    @property
    def draw(self) -> Draw:
        """Chosen by the tree."""
        return self.tree.draw

    @property
    def max_depth(self) -> int:
        """Chosen by the tree."""
        return self.tree.max_depth

    def _whole_chain(self, contexts: Sequence[Context]) -> WholeChain | None:
        """Say how chains are drafted in one go; None: they have to grow level by level."""
        is_drawn_chain = isinstance(self.tree, DrawnChain) and self.tree.is_drawn_chain
        if not is_drawn_chain or any(each.processors for each in contexts):
            return None
        streams = [each.draft_stream for each in contexts]
        if not all(map(is_plain, streams)):
            return None
        # As deep as the tree, though some steps want less: that would be another program.
        chain = DraftChain(self.max_depth, self._warped_by(contexts[0].sampling), self._vocab_size)
        return WholeChain(chain, [stream.peek(chain.depth) for stream in streams])

    def _warped_by(self, sampling: Sampling) -> Sampling:
        """Return what makes q of logits, and nothing else: it says which program drafts."""
        if self._warping is None or self._warping[0] is not sampling:
            own = sampling.at(self.temperature)
            plain = Sampling(own.temperature, own.top_k, own.top_p, own.min_p)
            self._warping = sampling, plain
        return self._warping[1]


def chains(found: DraftedChain, contexts: Sequence[Context]) -> list[Proposal]:
    """Return what was drafted, at most as deep as one of the requests can use."""
    depth = min(found.token_ids.shape[1], max(context.max_depth for context in contexts))
    token_ids = found.token_ids[:, :depth].tolist()
    return [
        Proposal(
            CandidateTree.chain(context.token_ids[-1], ids),
            Draw.SINGLE,
            probs[:depth],
            min(depth, context.max_depth),
        )
        for context, ids, probs in zip(contexts, token_ids, found.draft_probs, strict=True)
    ]
