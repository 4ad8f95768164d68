"""Ask a proposer what it would draft, without a decoder around it."""

from collections.abc import Sequence

from specdec.core.protocols import Proposer
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.values import Context, Proposal

PLENTY = 1000


def context(
    token_ids: Sequence[int],
    budget: int = PLENTY,
    row: int = 0,
    num_prompt_tokens: int = 1,
    sampling: Sampling | None = None,
    key: object = 0,
) -> Context:
    """Make the context of a request that has got so far; `key` seeds its noise."""
    return Context(
        row=row,
        request_id=f"request-{row}",
        token_ids=list(token_ids),
        num_prompt_tokens=num_prompt_tokens,
        sampling=sampling or Sampling(),
        budget=budget,
        draft_stream=RandomStream(key, row, "draft"),
        verify_stream=RandomStream(key, row, "verify"),
    )


def proposals_of(proposer: Proposer, *contexts: Context, vocab_size: int = 100) -> list[Proposal]:
    """Open, reset and ask for one proposal per request."""
    proposer.open(1 + max(one.row for one in contexts), PLENTY, vocab_size)
    proposer.reset(contexts)
    proposals = proposer.propose(contexts)
    assert len(proposals) == len(contexts)
    for one, proposal in zip(contexts, proposals, strict=True):
        assert proposal.tree.token_ids[0] == one.token_ids[-1], "node 0 is the last committed token"
        assert proposal.draw is proposer.draw or proposal.tree.num_draft_tokens == 0
        assert max(proposal.tree.depths) <= proposer.max_depth
    return proposals


def draft_ids(proposal: Proposal) -> list[int]:
    """List the draft tokens of a chain."""
    assert proposal.tree.is_chain
    return list(proposal.tree.token_ids[1:])
