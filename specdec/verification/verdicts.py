"""From what rules decided to verdicts, with what metrics want to know of each step."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.outcome import Outcome
from specdec.core.shown import Shown
from specdec.core.tree import ROOT
from specdec.core.values import Draw, Proposal, Verdict
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.overlap import transport_bound


class Decided(NamedTuple):
    """What a rule made of one tree; mappings are by node."""

    path: Sequence[int]
    expected: float  # E[A]
    overlap: Mapping[int, float]  # sum_v min(p, q) at nodes with candidates
    strays: Mapping[int, tuple[float, float]] | None = None  # of lossy rules: see `Verdict`


def last_of(path: Sequence[int]) -> int:
    """Return the node at which an accepted path ends."""
    return path[-1] if path else ROOT


def ending(proposal: Proposal, path: Sequence[int]) -> Outcome:
    """Say where the token after the path came from: were there candidates that were refused?"""
    last = last_of(path)
    is_last = last == proposal.tree.num_draft_tokens
    refused = proposal.tree.children[last] or (proposal.withheld and is_last)
    return Outcome.RECOVERED if refused else Outcome.BONUS


def root_bounds(shown: Shown, nodes: CandidateNodes) -> Tensor:  # [1, R]
    """Return the most that any rule can accept at the R roots with several sampled candidates.

    A vocabulary takes its time to sort: that is why it is for roots only.
    """
    places = _wide_roots(shown, nodes)
    if not places:
        return nodes.p.new_zeros(1, 0)
    some = nodes.at(places)
    counts = on_device(some.counts, some.p.device)[:, None]
    return transport_bound(some.p, some.q, counts)[None]


def _wide_roots(shown: Shown, nodes: CandidateNodes) -> list[int]:
    if shown.draw is Draw.DETERMINISTIC:
        return []
    pairs = enumerate(zip(nodes.numbers, nodes.counts, strict=True))
    return [place for place, (number, count) in pairs if number == ROOT and count > 1]


def verdicts(
    shown: Shown,
    decided: Sequence[Decided],
    tokens: Sequence[int],
    nodes: CandidateNodes | None = None,
    bounds: Sequence[float] = (),
) -> list[Verdict]:
    """Put together the verdicts of a batch; `bounds` [R] are those of `root_bounds`."""
    places = [] if nodes is None else _wide_roots(shown, nodes)
    owners = () if nodes is None else nodes.owners
    of_request = {owners[place]: bound for place, bound in zip(places, bounds, strict=True)}
    sampled = shown.draw is not Draw.DETERMINISTIC
    return [
        _verdict(proposal, one, token, of_request.get(number), sampled)
        for number, (proposal, one, token) in enumerate(
            zip(shown.proposals, decided, tokens, strict=True)
        )
    ]


def _verdict(
    proposal: Proposal, decided: Decided, token: int, bound: float | None, sampled: bool
) -> Verdict:
    visited = (ROOT, *decided.path)
    seen = tuple(decided.overlap[node] for node in visited if node in decided.overlap)
    # Of a single draw the most that can be accepted is what is accepted on average.
    bounds = (bound,) if bound is not None else seen[:1] if sampled else ()
    strays = decided.strays
    divergence = () if strays is None else tuple(strays.get(node, (0.0, 0.0)) for node in visited)
    path, outcome = tuple(decided.path), ending(proposal, decided.path)
    return Verdict(path, token, outcome, decided.expected, seen, bounds, divergence)
