"""Grow candidate trees level by level: what every proposer with a draft distribution shares."""

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from specdec.core.protocols import TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Level, Proposal

# Yields the logits [B, F, V] after the F nodes of the level above, first after the root alone, and
# is sent the level that was chosen from them.
LogitSource = Generator[Tensor, Level, None]


def propose_where(
    ready: Callable[[Context], bool],
    contexts: Sequence[Context],
    grown: Callable[[Sequence[Context]], list[Proposal]],
) -> list[Proposal]:
    """Grow trees for the requests that are ready and have tokens left; the others get none."""
    able = [context for context in contexts if context.max_depth > 0 and ready(context)]
    trees = zip(able, grown(able) if able else [], strict=True)
    proposals = {context.row: proposal for context, proposal in trees}
    return [
        proposals.get(c.row) or Proposal(CandidateTree.chain(c.token_ids[-1], ())) for c in contexts
    ]


def grow(
    policy: TreePolicy,
    contexts: Sequence[Context],
    source: LogitSource,
    temperature: float | None = None,
) -> list[Proposal]:
    """Grow one tree per request, all of one shape, down to the deepest that any can use.

    Sampled candidates are drawn from the law that the text is sampled with (same top-k, top-p,
    min-p) at `temperature`, by default the text's; deterministic ones are chosen by the draft's
    plain probabilities, since at temperature 0 all but one of them would be zero.
    """
    depth = min(policy.max_depth, max(context.max_depth for context in contexts))
    streams = [context.draft_stream for context in contexts]
    sampled = policy.draw is not Draw.DETERMINISTIC
    sampling = contexts[0].sampling.at(temperature) if sampled else Sampling()
    shape = TreeShape()
    laws: list[Tensor] = []
    levels: list[Tensor] = []
    logits = next(source)
    while True:
        laws.append(sampling.warp(logits))  # [B, F, V]
        level = policy.expand(len(laws), laws[-1], streams)
        levels.append(level.token_ids)
        shape.add(level)
        if len(levels) == depth:
            break
        logits = source.send(level)
    draft_ids = torch.cat(levels, dim=1).tolist()  # the only wait for the device
    rows = torch.cat(laws, dim=1) if sampled else [None] * len(contexts)
    return [
        _proposal(policy, context, shape, ids, draft_probs, depth)
        for context, ids, draft_probs in zip(contexts, draft_ids, rows, strict=True)
    ]


def _proposal(
    policy: TreePolicy,
    context: Context,
    shape: "TreeShape",
    draft_ids: list[int],
    draft_probs: Tensor | None,
    depth: int,
) -> Proposal:
    tree = CandidateTree((context.token_ids[-1], *draft_ids), tuple(shape.parents))
    # What it would have cost alone: neighbours in the batch may have asked for more levels.
    return Proposal(tree, policy.draw, draft_probs, min(depth, context.max_depth))


class TreeShape:
    """The nodes of a growing tree, numbered level by level."""

    def __init__(self) -> None:
        self.parents = [-1]
        self.depth = 0
        self._first = 0  # of the last level
        self.is_chain = True

    def add(self, level: Level) -> None:
        """Hang a level below the last one."""
        above, self._first = self._first, len(self.parents)
        self.parents += [above + parent for parent in level.parents]
        self.depth += 1
        self.is_chain = self.is_chain and len(level.parents) == 1

    def cells(self, lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Say where the last level's C nodes stand in a cache that holds text and earlier levels.

        Row b has `lengths[b]` cells of text, the root included, and then one for each earlier node.
        Returns positions [B, C] and `attend` [B, C, L] as `CausalLM.forward` takes them.
        """
        num_drafted = len(self.parents) - 1
        ancestors = CandidateTree(tuple(self.parents), tuple(self.parents)).ancestors()
        seen = torch.tensor([row[1:] for row in ancestors[self._first :]])  # [C, N]
        num_new = len(seen)
        attend = torch.zeros(len(lengths), num_new, max(lengths) + num_drafted, dtype=torch.bool)
        for index, length in enumerate(lengths):
            attend[index, :, :length] = True
            attend[index, :, length : length + num_drafted] = seen
        positions = torch.tensor(lengths)[:, None] - 1 + self.depth
        return positions.expand(-1, num_new).to(device), attend.to(device)
