"""Rules that accept each candidate with a probability of its own, and else draw from a residual.

All probabilities are computed for all nodes of a batch at once, on the device, and come to the host
in one transfer, on devices that are waited for together with the tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.on_host import together
from specdec.core.randomness import Stream
from specdec.core.shown import Shown
from specdec.core.values import Proposal, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.last_token import LastToken, Rest
from specdec.verification.verdicts import Decided, last_of, root_bounds, verdicts
from specdec.verification.walk import asked_before, expected_accepted, shares, walk

HAIR = 1e-30  # far below the rounding of any residual that has mass


@dataclass(frozen=True)
class Odds:
    """What a rule makes of the candidates at I nodes, K at most at each, before any decision."""

    overlap: Tensor  # [I]: sum_v min(p, q)
    accept: Tensor  # [I, K]: P(go on with the child | the ones before it were refused)
    some: Tensor  # [I]: P(go on with any child), the candidates' noise averaged out where possible
    rest: Rest  # [n] places -> [n, V]: what the next token is drawn from if none is
    strays: Tensor | None = None  # [I, 2]: of lossy rules, see `divergences`


def decide(shown: Shown, nodes: CandidateNodes, odds: Odds) -> list[Verdict]:
    """Walk down the trees with these odds."""
    last = LastToken(shown, nodes, odds.rest)
    columns = [odds.accept, odds.some[:, None], odds.overlap[:, None]]
    columns += [] if odds.strays is None else [odds.strays]
    bounds = root_bounds(shown, nodes)
    table, bound, *ahead = together(torch.cat(columns, dim=1), bounds, *last.ahead(asked_before))
    by_request = nodes.by_request(table, len(shown.proposals))
    decided = [
        _walked(proposal, rows, nodes.width, stream, odds.strays is not None)
        for proposal, rows, stream in zip(shown.proposals, by_request, shown.streams, strict=True)
    ]
    tokens = last.behind([last_of(one.path) for one in decided], ahead)
    return verdicts(shown, decided, tokens, nodes, bound[0])


def _walked(
    proposal: Proposal,
    rows: Mapping[int, Sequence[float]],
    width: int,
    stream: Stream,
    strays_are_known: bool,
) -> Decided:
    accept = {node: row[:width] for node, row in rows.items()}
    some = {node: row[width] for node, row in rows.items()}
    overlap = {node: row[width + 1] for node, row in rows.items()}
    strays = {node: (row[-2], row[-1]) for node, row in rows.items()} if strays_are_known else None
    path = walk(proposal.tree, accept, stream)
    expected = expected_accepted(proposal.tree, shares(accept), some)
    return Decided(path, expected, overlap, strays)


def residual(p: Tensor, q: Tensor, fallback: Tensor) -> Tensor:  # [..., V] each
    """Return norm((p - q)+) and, where rounding leaves nothing of it, `fallback`."""
    # In exact arithmetic a residual without mass is never drawn from; in floats it can be. A hair
    # of the fallback mends that without waiting for the device to look.
    rest = (p - q).clamp_(min=0).add_(fallback, alpha=HAIR)
    # Behind the end of a text there is no p at all, and nothing is drawn from what is left of it.
    return rest / rest.sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(rest.dtype).tiny)


def ratio(p: Tensor, q: Tensor) -> Tensor:
    """Return min(1, p / q); 0 where q is 0, since nothing is drawn from there."""
    return torch.where(q > 0, (p / q).clamp_(max=1), 0.0)
