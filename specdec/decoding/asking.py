"""Ask a proposer for candidates, as deep as the pace of the arm lets them go."""

from collections.abc import Sequence
from dataclasses import replace

from specdec.core.protocols import Pace, Proposer
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Proposal


def allowed(pace: Pace | None, proposer: Proposer, contexts: Sequence[Context]) -> list[Context]:
    """Return the contexts of those requests that may draft, with the depth that they may have."""
    if pace is None:
        return [*contexts]
    depths = pace.depths(contexts)
    if not any(depths):
        return []
    return [
        replace(
            context,
            depth=None if depth >= proposer.max_depth else depth,
            min_confidence=pace.min_confidence,
        )
        for context, depth in zip(contexts, depths, strict=True)
        if depth > 0
    ]


def for_all(
    proposals: Sequence[Proposal], able: Sequence[Context], contexts: Sequence[Context]
) -> list[Proposal]:
    """Return a proposal for each request: without candidates for those that were not asked."""
    if len(able) == len(contexts):
        return [*proposals]
    found = {context.row: each for context, each in zip(able, proposals, strict=True)}
    return [
        found.get(each.row)
        or Proposal(CandidateTree.chain(each.token_ids[-1], ()), num_draft_calls=0)
        for each in contexts
    ]
